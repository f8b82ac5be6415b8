//! AWS' signature, version 4: an HMAC over what is asked for, of whom and when, under a key derived from the secret one.
//!
//! Source: "Signature Calculations for the Authorization Header", Amazon S3 API Reference.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, header::InvalidHeaderValue};
use jiff::Timestamp;
use k3s_config::s3::S3Credentials;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stays as it is in a query; in a path the slash does, too.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const IN_PATH: &AsciiSet = &UNRESERVED.remove(b'/');

const CONTENT: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// A request as it is signed.
pub(crate) struct Unsigned<'a> {
    pub(crate) method: &'a Method,
    /// As the `Host` header has it.
    pub(crate) host: &'a str,
    /// Not encoded.
    pub(crate) path: &'a str,
    /// Not encoded.
    pub(crate) query: &'a [(&'a str, &'a str)],
    /// What is signed beside the headers that every request has.
    pub(crate) headers: HeaderMap,
    /// Of the body, in hexadecimal digits.
    pub(crate) sha256: &'a str,
}

impl Unsigned<'_> {
    /// The path and the query as they are sent.
    pub(crate) fn target(&self) -> String {
        let path = utf8_percent_encode(self.path, IN_PATH);
        let query = self.canonical_query();
        if query.is_empty() { path.to_string() } else { format!("{path}?{query}") }
    }

    /// The headers that prove who asks, at this time.
    ///
    /// # Errors
    /// A key, a token or the region holds what no header may.
    pub(crate) fn sign(
        &self,
        credentials: &S3Credentials,
        region: &str,
        at: Timestamp,
    ) -> Result<HeaderMap, InvalidHeaderValue> {
        let time = at.strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = &time[..8];
        let mut headers = self.headers.clone();
        headers.insert(header::HOST, self.host.try_into()?);
        headers.insert(CONTENT, self.sha256.try_into()?);
        headers.insert(DATE, time.as_str().try_into()?);
        if let Some(token) = &credentials.session_token {
            headers.insert(TOKEN, sensitive(token.expose())?);
        }

        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let signed = names.join(";");
        let mut request =
            format!("{}\n{}\n{}\n", self.method, utf8_percent_encode(self.path, IN_PATH), self.canonical_query());
        for name in names {
            // A String takes everything.
            let _ = writeln!(request, "{name}:{}", String::from_utf8_lossy(headers[name].as_bytes()).trim());
        }
        let _ = write!(request, "\n{signed}\n{}", self.sha256);

        let scope = format!("{day}/{region}/s3/aws4_request");
        let request = HEXLOWER.encode(digest(&SHA256, request.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{request}");
        let key = signing_key(credentials.secret_key.expose(), &[day, region, "s3", "aws4_request"]);
        let signature = HEXLOWER.encode(sign(&key, text.as_bytes()).as_ref());
        let key = credentials.access_key.expose();
        let authorization =
            format!("AWS4-HMAC-SHA256 Credential={key}/{scope},SignedHeaders={signed},Signature={signature}");
        headers.insert(header::AUTHORIZATION, sensitive(&authorization)?);
        Ok(headers)
    }

    fn canonical_query(&self) -> String {
        let encode = |text| utf8_percent_encode(text, UNRESERVED);
        let mut pairs: Vec<_> =
            self.query.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        pairs.sort();
        pairs.join("&")
    }
}

/// A value that `Debug` does not show.
fn sensitive(text: &str) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(text)?;
    value.set_sensitive(true);
    Ok(value)
}

fn signing_key(secret: &str, scope: &[&str]) -> Key {
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in scope {
        key = sign(&Key::new(HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
    }
    Key::new(HMAC_SHA256, &key)
}

#[cfg(test)]
mod tests {
    use k3s_config::secret::Secret;

    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    const HOST: &str = "examplebucket.s3.amazonaws.com";

    fn credentials() -> S3Credentials {
        S3Credentials {
            access_key: Secret::new("AKIAIOSFODNN7EXAMPLE"),
            secret_key: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            session_token: None,
        }
    }

    /// The four examples of "Signature Calculations for the Authorization Header", Amazon S3 API Reference.
    #[test]
    fn requests_are_signed_as_in_amazons_documentation() {
        let body = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
        let date = [("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")];
        let at = "2013-05-24T00:00:00Z".parse().unwrap();
        for (method, path, query, headers, sha256, signature) in [
            (
                Method::GET,
                "/test.txt",
                &[][..],
                &[("range", "bytes=0-9")][..],
                EMPTY,
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                Method::PUT,
                "/test$file.text",
                &[],
                &date,
                body,
                "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            ),
            (
                Method::GET,
                "/",
                &[("lifecycle", "")],
                &[],
                EMPTY,
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                Method::GET,
                "/",
                &[("prefix", "J"), ("max-keys", "2")],
                &[],
                EMPTY,
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let headers = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            let unsigned = Unsigned { method: &method, host: HOST, path, query, headers, sha256 };
            let headers = unsigned.sign(&credentials(), "us-east-1", at).unwrap();
            let authorization = headers[header::AUTHORIZATION].to_str().unwrap();
            let scope = "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request";
            assert!(authorization.starts_with(&format!("AWS4-HMAC-SHA256 {scope},SignedHeaders=")), "{authorization}");
            assert!(authorization.ends_with(&format!(",Signature={signature}")), "{path}: {authorization}");
            assert!(!format!("{headers:?}").contains(signature), "a log would show it");
        }
    }

    #[test]
    fn the_token_of_temporary_keys_is_signed_too() {
        let with_token = S3Credentials { session_token: Some(Secret::new("temporary")), ..credentials() };
        let unsigned = Unsigned {
            method: &Method::GET,
            host: HOST,
            path: "/",
            query: &[],
            headers: HeaderMap::new(),
            sha256: EMPTY,
        };
        let headers = unsigned.sign(&with_token, "us-east-1", Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(headers[TOKEN], "temporary");
        let authorization = headers[header::AUTHORIZATION].to_str().unwrap();
        let signed = "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,";
        assert!(authorization.contains(signed), "{authorization}");
        assert!(!format!("{headers:?}").contains("temporary"), "a log would show it");
    }

    #[test]
    fn names_are_encoded_as_they_are_signed() {
        let query = [("prefix", "edge 7/ä")];
        let unsigned = Unsigned {
            method: &Method::GET,
            host: "h",
            path: "/b/on demand+1",
            query: &query,
            headers: HeaderMap::new(),
            sha256: EMPTY,
        };
        assert_eq!(unsigned.target(), "/b/on%20demand%2B1?prefix=edge%207%2F%C3%A4");
    }
}
