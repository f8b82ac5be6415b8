//! What clients send us, as functions of arbitrary bytes. They panic where a promise is broken.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{Authorization, NodeClaim, paths::Route};

/// Requests as far as we judge them: the path in the first line, a header in each of the others.
pub fn headers(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let path = String::from_utf8_lossy(lines.next().unwrap_or_default());
    if let Some(route) = Route::find(&path) {
        assert!(path.starts_with(route.path()), "{path} is another spelling");
    }
    let header = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        Some((name, HeaderValue::from_bytes(&line[colon + 1..]).ok()?))
    };
    let mut map: HeaderMap = HeaderMap::new();
    for (name, value) in lines.filter_map(header).take(64) {
        map.append(name, value);
    }
    let _ = Authorization::of(&map);
    if let Ok(claim) = NodeClaim::of(&map) {
        let name = claim.name.as_str();
        assert!(
            name.len() <= 235
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
        );
    }
    k3s_http::remove_forged_identity(&mut map);
    assert!(map.keys().all(|name| !name.as_str().replace('_', "-").starts_with("x-remote-")));
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Also what fuzzers have found once lies there.
    #[test]
    fn every_seed_passes() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/headers");
        for seed in fs::read_dir(corpus).unwrap() {
            headers(&fs::read(seed.unwrap().path()).unwrap());
        }
    }
}
