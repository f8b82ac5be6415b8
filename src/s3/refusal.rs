//! What S3 says when it says no.

use http::StatusCode;
use serde::Deserialize;

/// Its document; proxies and gateways send others.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Refusal {
    code: String,
    message: String,
}

/// What a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefusalKind {
    Bucket,
    Object,
    Key,
    Rights,
    Clock,
    Region,
    Other,
}

/// More than any such sentence has.
const LONGEST: usize = 300;

impl Refusal {
    /// Reads a document, which may be something else or nothing.
    pub(crate) fn parse(text: &[u8]) -> Self {
        let found: Self =
            str::from_utf8(text).ok().and_then(|text| quick_xml::de::from_str(text).ok()).unwrap_or_default();
        let plain = |text: String| text.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
        Self { code: plain(found.code), message: plain(found.message) }
    }

    /// By S3's code, or HTTP's where there is none, as in answers to HEAD.
    pub(crate) fn kind(&self, status: u16, of_object: bool) -> RefusalKind {
        match (self.code.as_str(), status) {
            ("NoSuchBucket", _) => RefusalKind::Bucket,
            ("NoSuchKey", _) => RefusalKind::Object,
            (
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "ExpiredToken"
                | "TokenRefreshRequired"
                | "NotSignedUp"
                | "InvalidSecurity",
                _,
            ) => RefusalKind::Key,
            ("RequestTimeTooSkewed" | "RequestExpired", _) => RefusalKind::Clock,
            (
                "AuthorizationHeaderMalformed"
                | "PermanentRedirect"
                | "TemporaryRedirect"
                | "IllegalLocationConstraintException",
                _,
            ) => RefusalKind::Region,
            ("AccessDenied" | "AllAccessDisabled" | "AccountProblem", _) => RefusalKind::Rights,
            ("", 301 | 307) => RefusalKind::Region,
            ("", 401) => RefusalKind::Key,
            ("", 403) => RefusalKind::Rights,
            ("", 404) if of_object => RefusalKind::Object,
            _ => RefusalKind::Other,
        }
    }

    /// Its own words for a sentence of ours.
    pub(crate) fn words(self, status: StatusCode) -> String {
        match (self.code.is_empty(), self.message.is_empty()) {
            (true, true) => status.canonical_reason().unwrap_or("no reason given").to_owned(),
            (false, true) => self.code,
            (true, false) => self.message,
            (false, false) => format!("{}: {}", self.code, self.message.trim_end_matches('.')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_apart_by_its_code() {
        let document = |code: &str| {
            format!(
                "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>As said.\n</Message><Resource>/b</Resource></Error>"
            )
        };
        for (code, kind) in [
            ("NoSuchBucket", RefusalKind::Bucket),
            ("NoSuchKey", RefusalKind::Object),
            ("SignatureDoesNotMatch", RefusalKind::Key),
            ("RequestTimeTooSkewed", RefusalKind::Clock),
            ("AuthorizationHeaderMalformed", RefusalKind::Region),
            ("AccessDenied", RefusalKind::Rights),
            ("SlowDown", RefusalKind::Other),
        ] {
            let refusal = Refusal::parse(document(code).as_bytes());
            assert_eq!(refusal.kind(403, true), kind, "{code}");
            assert_eq!(refusal.words(StatusCode::FORBIDDEN), format!("{code}: As said"));
        }
        assert_eq!(Refusal::parse(document(&"x".repeat(10_000)).as_bytes()).code.len(), LONGEST);
    }

    #[test]
    fn without_a_document_the_status_tells() {
        let refusal = || Refusal::parse(b"");
        assert_eq!(refusal().kind(403, true), RefusalKind::Rights);
        assert_eq!((refusal().kind(404, true), refusal().kind(404, false)), (RefusalKind::Object, RefusalKind::Other));
        assert_eq!(refusal().words(StatusCode::FORBIDDEN), "Forbidden");
        assert_eq!(Refusal::parse(b"<html>Bad gateway").kind(502, false), RefusalKind::Other);
    }
}
