//! A page of what is in a bucket.

use jiff::Timestamp;
use serde::Deserialize;

/// Whatever else it is called is no list.
#[derive(Deserialize)]
enum Document {
    ListBucketResult(Page),
}

/// One answer to `ListObjectsV2`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Page {
    #[serde(default)]
    pub(crate) contents: Vec<Entry>,
    #[serde(default)]
    is_truncated: bool,
    next_continuation_token: Option<String>,
}

/// An object.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) size: u64,
    pub(crate) last_modified: Option<Timestamp>,
}

impl Page {
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let text = str::from_utf8(text).map_err(|_| "its list is no text".to_owned())?;
        let document = quick_xml::de::from_str(text).map_err(|error| format!("its list cannot be read: {error}"))?;
        let Document::ListBucketResult(page) = document;
        Ok(page)
    }

    /// What the next page begins with, if there is one.
    ///
    /// # Errors
    /// It says that there is one and not how to ask for it.
    pub(crate) fn next(&self) -> Result<Option<&str>, &'static str> {
        match self.next_continuation_token.as_deref() {
            _ if !self.is_truncated => Ok(None),
            Some(token) if !token.is_empty() => Ok(Some(token)),
            _ => Err("its list goes on, and it does not say where"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_tells_its_objects_and_what_follows() {
        let page = Page::parse(
            br#"<?xml version="1.0" encoding="UTF-8"?>
            <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
              <Name>b</Name><Prefix>edge/</Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>
              <Contents><Key>edge/a&amp;b</Key><LastModified>2026-11-29T03:04:05.000Z</LastModified><ETag>&quot;x&quot;</ETag><Size>7</Size></Contents>
              <Contents><Key>edge/c</Key><Size>9</Size><StorageClass>STANDARD</StorageClass></Contents>
              <NextContinuationToken>1ueG</NextContinuationToken>
            </ListBucketResult>"#,
        )
        .unwrap();
        let keys: Vec<_> = page.contents.iter().map(|entry| (entry.key.as_str(), entry.size)).collect();
        assert_eq!(keys, [("edge/a&b", 7), ("edge/c", 9)]);
        assert_eq!(page.contents[0].last_modified, "2026-11-29T03:04:05Z".parse().ok());
        assert_eq!(page.next(), Ok(Some("1ueG")));
    }

    #[test]
    fn a_list_that_goes_on_nowhere_is_refused() {
        let page = |rest: &str| Page::parse(format!("<ListBucketResult>{rest}</ListBucketResult>").as_bytes()).unwrap();
        assert_eq!(page("<IsTruncated>false</IsTruncated>").next(), Ok(None));
        assert!(page("<IsTruncated>true</IsTruncated>").next().is_err());
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert!(Page::parse(b"<ListBucketResult></ListBucketResult>").unwrap().contents.is_empty());
        for wrong in [
            &b"<html/>"[..],
            b"<html>",
            b"\xff",
            b"",
            b"<ListBucketResult><Contents><Size>x</Size></Contents></ListBucketResult>",
        ] {
            assert!(Page::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
