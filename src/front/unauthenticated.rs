//! Requests without credentials.
//!
//! kube-apiserver answers each with 401 unless anonymous access is on, which it is not by default. The front says the same in its place, byte
//! for byte: so strangers cost kube-apiserver nothing, and have no connection to it that they could do harm on.

use aws_lc_rs::rand;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri,
    header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, USER_AGENT},
};
use k3s_config::args::ComponentArgs;
use k3s_http::{Body, full};

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Arguments of kube-apiserver with which requests without credentials may have another answer than 401, or one with more headers.
const FORWARDING: [&str; 3] = ["authentication-config", "cors-allowed-origins", "strict-transport-security-directives"];

const JSON: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}
"#;
const PRETTY_JSON: &str = r#"{
  "kind": "Status",
  "apiVersion": "v1",
  "metadata": {},
  "status": "Failure",
  "message": "Unauthorized",
  "reason": "Unauthorized",
  "code": 401
}"#;
const YAML: &str = "apiVersion: v1\ncode: 401\nkind: Status\nmessage: Unauthorized\nmetadata: {}\nreason: Unauthorized\nstatus: Failure\n";
/// `runtime.Unknown` around a `metav1.Status`, behind Kubernetes' magic number.
const PROTOBUF: &[u8] = b"k8s\0\n\x0c\n\x02v1\x12\x06Status\x12\x30\n\x06\n\0\x12\0\x1a\0\x12\x07Failure\x1a\x0cUnauthorized\x22\x0cUnauthorized\x30\x91\x03\x1a\0\x22\0";

/// Clauses of an `Accept` header that are looked at.
const CLAUSES: usize = 32;

/// Who answers requests without credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unauthenticated {
    /// The front, with 401.
    Refused,
    /// kube-apiserver: the user has switched something on that makes its answer another one.
    Forwarded,
}

/// The forms in which a Status can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    PrettyJson,
    Yaml,
    Protobuf,
}

impl Unauthenticated {
    /// With these arguments of the user's for kube-apiserver.
    pub fn with(kube_apiserver: &ComponentArgs) -> Self {
        let forwarded = kube_apiserver.iter().any(|arg| match arg.name.replace('_', "-").as_str() {
            "anonymous-auth" => is_true(&arg.value),
            name => FORWARDING.contains(&name),
        });
        if forwarded { Self::Forwarded } else { Self::Refused }
    }
}

/// kube-apiserver's 401 to a request for `uri` with these headers (`Unauthorized` in apiserver's `endpoints/filters`).
pub(super) fn answer(uri: &Uri, headers: &HeaderMap) -> Response<Body> {
    let form = Form::negotiated(uri, headers);
    let (kind, content): (_, &'static [u8]) = match form {
        Form::Json => ("application/json", JSON.as_bytes()),
        Form::PrettyJson => ("application/json", PRETTY_JSON.as_bytes()),
        Form::Yaml => ("application/yaml", YAML.as_bytes()),
        Form::Protobuf => ("application/vnd.kubernetes.protobuf", PROTOBUF),
    };
    let mut response = Response::new(full(content));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let answer = response.headers_mut();
    answer.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if let Some(id) = headers.get(AUDIT_ID).filter(|id| !id.is_empty()).cloned().or_else(new_audit_id) {
        answer.insert(AUDIT_ID, id);
    }
    response
}

impl Form {
    /// As apiserver's `NegotiateOutputMediaType` decides; what suits nothing gets indented JSON.
    fn negotiated(uri: &Uri, headers: &HeaderMap) -> Self {
        let pretty = |asked: bool| if asked || is_for_people(uri, headers) { Self::PrettyJson } else { Self::Json };
        let Some(accept) = headers.get(ACCEPT).filter(|accept| !accept.is_empty()) else { return pretty(false) };
        let found = accept.to_str().ok().and_then(|accept| {
            let clauses = Clause::parse_all(accept);
            clauses.into_iter().find_map(|clause| Some((clause.form()?, clause.pretty)))
        });
        match found {
            Some((Self::Json, asked)) => pretty(asked),
            Some((form, _)) => form,
            None => Self::PrettyJson,
        }
    }
}

/// One media range of an `Accept` header.
#[derive(Debug)]
struct Clause<'a> {
    kind: &'a str,
    subtype: &'a str,
    quality: f32,
    pretty: bool,
    /// It asks for another object than there is, or for another version.
    transformed: bool,
    stream: &'a str,
}

impl<'a> Clause<'a> {
    /// In the order in which goautoneg tries them.
    fn parse_all(accept: &'a str) -> Vec<Self> {
        let mut clauses: Vec<Self> = accept.split(',').take(CLAUSES).filter_map(Self::parse).collect();
        // Its comparison is no order, so that the way of sorting matters: Go's for few elements.
        for end in 1..clauses.len() {
            let mut index = end;
            while index > 0 && clauses[index].goes_before(&clauses[index - 1]) {
                clauses.swap(index, index - 1);
                index -= 1;
            }
        }
        clauses
    }

    fn parse(clause: &'a str) -> Option<Self> {
        let mut parts = clause.split(';');
        let mut names = parts.next()?.split('/').map(|name| name.trim_matches(' '));
        let (kind, subtype) = match (names.next()?, names.next().filter(|name| !name.is_empty()), names.next()) {
            ("*", None, _) => ("*", "*"),
            (kind, Some(subtype), None) => (kind, subtype),
            _ => return None,
        };
        let mut clause = Self { kind, subtype, quality: 1.0, pretty: false, transformed: false, stream: "" };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim_matches(' ');
            match name.trim_matches(' ') {
                _ if value.is_empty() || value.contains('=') => {}
                "q" => clause.quality = value.parse().unwrap_or(0.0),
                "as" | "g" | "v" | "sv" => clause.transformed = true,
                "stream" => clause.stream = value,
                "pretty" => clause.pretty = value == "1",
                _ => {}
            }
        }
        Some(clause)
    }

    fn goes_before(&self, other: &Self) -> bool {
        self.quality > other.quality
            || self.kind != "*" && other.kind == "*"
            || self.subtype != "*" && other.subtype == "*"
    }

    /// What of apiserver's media types it means.
    fn form(&self) -> Option<Form> {
        let form = match (self.kind, self.subtype) {
            ("*" | "application", "*") | ("application", "json") => Form::Json,
            ("application", "yaml") => Form::Yaml,
            ("application", "vnd.kubernetes.protobuf") => Form::Protobuf,
            _ => return None,
        };
        let streamed = matches!((self.stream, form), ("", _) | ("watch", Form::Json | Form::Protobuf));
        (streamed && !self.transformed).then_some(form)
    }
}

/// Whether indented JSON is what the client likes best: it says so, or is a tool that people use.
fn is_for_people(uri: &Uri, headers: &HeaderMap) -> bool {
    let asked = uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("pretty="));
    if let Some(asked) = asked.filter(|asked| !asked.is_empty()) {
        return is_true(asked);
    }
    let agent = headers.get(USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|tool| agent.starts_with(tool.as_bytes()))
}

/// As Go's `strconv.ParseBool`.
fn is_true(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "TRUE" | "true" | "True")
}

/// A random UUID.
fn new_audit_id() -> Option<HeaderValue> {
    let mut bits = [0; 16];
    rand::fill(&mut bits).ok()?;
    let bits = u128::from_be_bytes(bits) & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let digits = format!("{bits:032x}");
    let uuid = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-");
    HeaderValue::try_from(uuid).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(uri: &str, headers: &[(HeaderName, &'static str)]) -> Form {
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        Form::negotiated(&uri.parse().unwrap(), &headers)
    }

    #[test]
    fn the_form_is_the_one_that_kube_apiserver_would_choose() {
        for (accept, chosen) in [
            ("application/json", Form::Json),
            ("*/*", Form::Json),
            ("*", Form::Json),
            ("application/*", Form::Json),
            ("", Form::Json),
            ("application/yaml", Form::Yaml),
            ("application/vnd.kubernetes.protobuf", Form::Protobuf),
            ("application/vnd.kubernetes.protobuf,application/json", Form::Protobuf),
            ("application/vnd.kubernetes.protobuf; q=0.5 , application/yaml", Form::Yaml),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Form::Json),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/yaml", Form::Yaml),
            ("application/json;stream=watch", Form::Json),
            ("application/json;stream=watch,application/vnd.kubernetes.protobuf;stream=watch", Form::Json),
            ("application/yaml;stream=watch,application/json", Form::Json),
            ("application/json;pretty=1", Form::PrettyJson),
            ("*/*, application/yaml", Form::Yaml),
            ("text/html", Form::PrettyJson),
            ("application/json;as=Table", Form::PrettyJson),
            ("nonsense", Form::PrettyJson),
        ] {
            assert_eq!(form("/api", &[(ACCEPT, accept)]), chosen, "{accept}");
        }
    }

    #[test]
    fn people_get_lines() {
        for (uri, agent, chosen) in [
            ("/api", "curl/8.5.0", Form::PrettyJson),
            ("/api", "Mozilla/5.0 (X11)", Form::PrettyJson),
            ("/api", "kubectl/v1.36.3", Form::Json),
            ("/api?pretty=false", "curl/8.5.0", Form::Json),
            ("/api?limit=1&pretty=true", "kubectl/v1.36.3", Form::PrettyJson),
            ("/api?pretty=", "curl/8.5.0", Form::PrettyJson),
            ("/api?pretty=yes", "curl/8.5.0", Form::Json),
        ] {
            assert_eq!(form(uri, &[(USER_AGENT, agent)]), chosen, "{uri} {agent}");
        }
        assert_eq!(form("/api", &[(USER_AGENT, "curl/8.5.0"), (ACCEPT, "application/yaml")]), Form::Yaml);
    }

    #[test]
    fn the_requests_audit_id_comes_back_or_a_new_one() {
        let (uri, mut headers) = (Uri::from_static("/api"), HeaderMap::new());
        let ids = [(); 2].map(|()| answer(&uri, &headers).headers()[AUDIT_ID].to_str().unwrap().to_owned());
        assert_ne!(ids[0], ids[1]);
        let parts: Vec<_> = ids[0].split('-').collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert!(parts[2].starts_with('4') && parts[3].starts_with(['8', '9', 'a', 'b']), "{}", ids[0]);
        headers.insert(AUDIT_ID, HeaderValue::from_static("mine"));
        assert_eq!(answer(&uri, &headers).headers()[AUDIT_ID], "mine");
    }

    #[test]
    fn the_protobuf_is_as_long_as_it_says() {
        let status = PROTOBUF.strip_prefix(b"k8s\0\n\x0c\n\x02v1\x12\x06Status\x12\x30").unwrap();
        let status = status.strip_suffix(b"\x1a\0\x22\0").unwrap();
        assert_eq!(status.len(), 0x30);
        assert!(status.ends_with(b"\x30\x91\x03"), "401, as a varint");
    }

    #[test]
    fn kube_apiserver_is_asked_once_its_answer_may_be_another_one() {
        let with = |args: &[&str]| {
            let args: Vec<_> = args.iter().map(|arg| arg.parse().unwrap()).collect();
            Unauthenticated::with(&ComponentArgs::from_iter(args))
        };
        assert_eq!(with(&[]), Unauthenticated::Refused);
        assert_eq!(with(&["anonymous-auth=false", "v=4"]), Unauthenticated::Refused);
        for arg in ["anonymous-auth=true", "anonymous-auth", "anonymous_auth=T", "authentication-config=/etc/auth.yaml"]
        {
            assert_eq!(with(&[arg]), Unauthenticated::Forwarded, "{arg}");
        }
    }
}
