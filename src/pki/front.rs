//! The certificate that port 6443 shows, kept as k3s' dynamic listener keeps it: a TLS Secret in `tls/dynamic-cert.json`.
//!
//! It names everything the server is reached by and was ever asked for; each change issues it again for the same key.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    time::SystemTime,
};

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};
use data_encoding::{HEXLOWER, HEXUPPER};
use rustls::{pki_types::CertificateDer, sign::CertifiedKey};
use serde_json::{Map, Value, json};
use tracing::{info, warn};

use crate::{
    certificate::{Certificate, bundle},
    error::Error,
    files::{self, PRIVATE},
    key::PrivateKey,
    leaf::Profile,
    pem,
    renewal::{self, Decision, Reason},
    san::San,
    server::ServerPki,
};

/// Annotations that hold one name each: the list that k3s merges.
const NAME: &str = "listener.cattle.io/cn-";
/// `true` on a certificate that the user brought: it is never issued again.
const STATIC: &str = "listener.cattle.io/static";
/// `SHA1=<hex>` of the certificate.
const FINGERPRINT: &str = "listener.cattle.io/fingerprint";

/// A serving certificate with its chain and key.
pub struct FrontCertificate {
    certificate: Certificate,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
}

impl FrontCertificate {
    /// What the server in `dir` (`<data>/server`) showed when it last ran, however long ago; `None` if it never did.
    pub fn last(dir: &Path) -> Option<Self> {
        ServingSecret::load(&dir.join("tls/dynamic-cert.json")).ok()?.certificate().ok()
    }

    /// The certificate, followed by its authority's chain.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// What it is valid for.
    pub fn names(&self) -> &BTreeSet<San> {
        &self.certificate.sans
    }

    /// For rustls' certificate resolvers.
    pub fn certified_key(&self) -> CertifiedKey {
        CertifiedKey::new(self.chain.clone(), self.key.signer())
    }

    /// With its key and its names, as servers share it.
    pub fn secret(&self) -> ServingSecret {
        let mut secret = ServingSecret(Map::new());
        secret.store(&pem::encode_certificates(&self.chain), &self.key, &self.certificate.sans);
        secret
    }
}

impl fmt::Debug for FrontCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontCertificate").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl ServerPki {
    /// The front's certificate: what is stored, or a new one if that ends soon or lacks one of our names or of `further`.
    ///
    /// A file `tls/dynamic-cert-regenerate` (left by `k3s certificate rotate`) asks for a new key too.
    ///
    /// # Errors
    /// The files cannot be read or written, or the authority cannot sign.
    pub fn front_certificate(&self, further: &[San], now: SystemTime) -> Result<FrontCertificate, Error> {
        let path = self.tls.join("dynamic-cert.json");
        let trigger = self.tls.join("dynamic-cert-regenerate");
        let mut secret = ServingSecret::load(&path)?;
        if ServingSecret::is_static(&secret.annotations()) {
            return secret.certificate().map_err(|why| Error::StaticCertificate { path, why });
        }

        let mut sans = &self.serving_sans | &ServingSecret::names(&secret.annotations());
        sans.extend(further.iter().cloned());
        let profile = Profile { organization: Some("k3s".into()), ..Profile::server("k3s", sans) };
        let regenerate = trigger.exists();
        let reason = match secret.certificate() {
            _ if regenerate => Reason::Requested,
            Err(_) => Reason::Missing,
            Ok(stored) => {
                let (found, chain, key) = (&stored.certificate, &stored.chain[1..], stored.key.public());
                match renewal::decision(found, chain, &profile, &self.server_ca, key, now.into()) {
                    Decision::Keep => return Ok(stored),
                    Decision::Renew(reason) => reason,
                }
            }
        };

        let key = secret.key().filter(|_| !regenerate).map_or_else(PrivateKey::generate, Ok)?;
        let pem = self.server_ca.issue(&profile, key.public(), now.into())?;
        secret.store(&pem, &key, &profile.sans);
        files::write(&path, secret.to_string().as_bytes(), PRIVATE)?;
        files::remove(&trigger)?;
        info!(names = profile.sans.len(), %reason, "Issued the front's certificate.");
        secret.certificate().map_err(|_| Error::Crypto("read the front's certificate back"))
    }
}

/// A Kubernetes Secret of type `kubernetes.io/tls`, whose annotations list the names; fields that are not ours stay.
pub struct ServingSecret(Map<String, Value>);

impl ServingSecret {
    /// The names that annotations list.
    pub fn names(annotations: &BTreeMap<String, String>) -> BTreeSet<San> {
        let listed = annotations.iter().filter(|(key, _)| key.starts_with(NAME));
        listed.filter_map(|(_, name)| name.parse().ok()).collect()
    }

    /// Whether annotations say that a user brought the certificate.
    pub fn is_static(annotations: &BTreeMap<String, String>) -> bool {
        annotations.get(STATIC).is_some_and(|value| value == "true")
    }

    /// Its fields.
    pub fn into_json(self) -> Value {
        Value::Object(self.0)
    }

    /// What the file holds. It is a cache: what cannot be read is made again.
    fn load(path: &Path) -> Result<Self, Error> {
        let Some(text) = files::read(path)? else { return Ok(Self(Map::new())) };
        match serde_json::from_slice(&text) {
            Ok(fields) => Ok(Self(fields)),
            Err(error) => {
                warn!(path = %path.display(), %error, "The front's stored certificate cannot be read and is issued again.");
                Ok(Self(Map::new()))
            }
        }
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let annotations = self.0.get("metadata").and_then(|metadata| metadata.get("annotations"));
        let annotations = annotations.and_then(Value::as_object).into_iter().flatten();
        annotations.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }

    fn data(&self, key: &str) -> Option<Vec<u8>> {
        STANDARD.decode(self.0.get("data")?.get(key)?.as_str()?).ok()
    }

    fn key(&self) -> Option<PrivateKey> {
        PrivateKey::from_pem(&self.data("tls.key")?)
    }

    /// The stored certificate and key, if they belong together.
    fn certificate(&self) -> Result<FrontCertificate, String> {
        let key = self.key().ok_or("tls.key is not a private key in PEM form")?;
        let chain = self.data("tls.crt").ok_or("tls.crt is missing")?;
        let chain = bundle(&chain).map_err(|why| format!("tls.crt: {why}"))?;
        let certificate = Certificate::parse(&chain[0]).map_err(|why| format!("tls.crt: {why}"))?;
        if certificate.public_key != *key.public() {
            return Err("tls.crt is not for tls.key".into());
        }
        Ok(FrontCertificate { certificate, chain, key })
    }

    fn store(&mut self, pem: &str, key: &PrivateKey, sans: &BTreeSet<San>) {
        let fields = &mut self.0;
        fields.insert("type".into(), json!("kubernetes.io/tls"));
        let data = json!({ "tls.crt": STANDARD.encode(pem), "tls.key": STANDARD.encode(key.pem()) });
        fields.insert("data".into(), data);
        let metadata = object(fields, "metadata");
        let annotations = object(metadata, "annotations");
        for san in sans {
            let name = san.to_string();
            annotations.insert(annotation_of(&name), Value::String(name));
        }
        if let Ok(chain) = bundle(pem.as_bytes()) {
            let sha1 = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &chain[0]);
            annotations.insert(FINGERPRINT.into(), Value::String(format!("SHA1={}", HEXUPPER.encode(sha1.as_ref()))));
        }
    }
}

impl fmt::Display for ServingSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", Value::Object(self.0.clone()))
    }
}

/// The object in a field, which becomes one if it is anything else.
fn object<'a>(fields: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let field = fields.entry(name).or_insert(Value::Null);
    if !field.is_object() {
        *field = Value::Object(Map::new());
    }
    field.as_object_mut().expect("it was just made an object")
}

/// A name's annotation. Names that do not fit an annotation's key are cut and told apart by a digest, as in k3s.
fn annotation_of(name: &str) -> String {
    let full = format!("{NAME}{name}");
    if full.len() < 64 && !full.contains([':', '*']) {
        return full;
    }
    let digest = digest::digest(&digest::SHA256, full.as_bytes());
    let mut key = full.replace([':', '*'], "_");
    key.truncate(56);
    key.push('-');
    key.push_str(&HEXLOWER.encode(&digest.as_ref()[..3]));
    key
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::server::tests::request;

    fn pki(dir: &tempfile::TempDir) -> ServerPki {
        ServerPki::ensure(dir.path(), &request()).unwrap()
    }

    fn stored(dir: &tempfile::TempDir) -> Value {
        serde_json::from_slice(&fs::read(dir.path().join("tls/dynamic-cert.json")).unwrap()).unwrap()
    }

    fn names(front: &FrontCertificate) -> BTreeSet<String> {
        front.certificate.sans.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn it_is_issued_once_and_stored_as_a_tls_secret() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki(&dir);
        let front = pki.front_certificate(&[], request().now).unwrap();
        let certificate = &front.certificate;
        assert_eq!(certificate.common_name.as_deref(), Some("k3s"));
        assert!(certificate.organizations.iter().eq(["k3s"]));
        assert!(names(&front).contains("kubernetes.default.svc.cluster.local"));

        let secret = stored(&dir);
        assert_eq!(secret["type"], "kubernetes.io/tls");
        let annotations = &secret["metadata"]["annotations"];
        assert_eq!(annotations["listener.cattle.io/cn-192.0.2.10"], "192.0.2.10");
        assert!(annotations[FINGERPRINT].as_str().unwrap().starts_with("SHA1="));

        let again = pki.front_certificate(&[], request().now).unwrap();
        assert_eq!(again.chain(), front.chain());
        assert_eq!(again.secret().into_json(), secret, "and shared as it is stored");
    }

    #[test]
    fn a_name_that_was_learned_is_added_and_stays_and_so_does_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki(&dir);
        let before = pki.front_certificate(&[], request().now).unwrap();
        let learned = "203.0.113.7".parse().unwrap();
        let after = pki.front_certificate(&[learned], request().now).unwrap();
        assert!(names(&after).is_superset(&names(&before)) && names(&after).contains("203.0.113.7"));
        assert_eq!(after.key.public(), before.key.public());
        assert!(names(&pki.front_certificate(&[], request().now).unwrap()).contains("203.0.113.7"));
    }

    #[test]
    fn it_is_renewed_in_time_and_regenerated_on_demand() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki(&dir);
        let first = pki.front_certificate(&[], request().now).unwrap();
        let later = request().now + Duration::from_secs(246 * 86_400);
        let renewed = pki.front_certificate(&[], later).unwrap();
        assert_ne!(renewed.chain(), first.chain());
        assert_eq!(renewed.key.public(), first.key.public());

        let trigger = dir.path().join("tls/dynamic-cert-regenerate");
        fs::write(&trigger, "").unwrap();
        let regenerated = pki.front_certificate(&[], later).unwrap();
        assert_ne!(regenerated.key.public(), renewed.key.public());
        assert!(!trigger.exists());
    }

    #[test]
    fn fields_of_the_secret_that_are_not_ours_stay() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki(&dir);
        let theirs = json!({
            "metadata": { "name": "k3s-serving", "namespace": "kube-system", "uid": "1-2-3",
                          "annotations": { "listener.cattle.io/cn-old.example.com": "old.example.com" } },
        });
        fs::write(dir.path().join("tls/dynamic-cert.json"), theirs.to_string()).unwrap();
        let front = pki.front_certificate(&[], request().now).unwrap();
        assert!(names(&front).contains("old.example.com"));
        assert_eq!(stored(&dir)["metadata"]["uid"], "1-2-3");
    }

    #[test]
    fn a_broken_cache_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki(&dir);
        for broken in ["", "{", "[]", r#"{"data":{"tls.crt":7}}"#, r#"{"metadata":"x","data":{"tls.key":"AAAA"}}"#] {
            fs::write(dir.path().join("tls/dynamic-cert.json"), broken).unwrap();
            pki.front_certificate(&[], request().now).unwrap().certified_key().keys_match().unwrap();
        }
    }

    #[test]
    fn a_static_certificate_is_the_users() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki(&dir);
        pki.front_certificate(&[], request().now).unwrap();
        let path = dir.path().join("tls/dynamic-cert.json");
        let mut secret = stored(&dir);
        secret["metadata"]["annotations"][STATIC] = "true".into();
        fs::write(&path, secret.to_string()).unwrap();
        let expired = request().now + Duration::from_secs(1000 * 86_400);
        pki.front_certificate(&["new.example.com".parse().unwrap()], expired).unwrap();
        assert_eq!(stored(&dir), secret);
        secret["data"]["tls.key"] = "".into();
        fs::write(&path, secret.to_string()).unwrap();
        let error = pki.front_certificate(&[], expired).unwrap_err();
        assert!(matches!(error, Error::StaticCertificate { .. }), "{error}");
        assert_eq!(stored(&dir), secret);
    }

    #[test]
    fn annotations_are_named_as_k3s_names_them() {
        assert_eq!(annotation_of("edge-1"), "listener.cattle.io/cn-edge-1");
        assert_eq!(annotation_of("::1"), "listener.cattle.io/cn-__1-f16284");
        assert_eq!(annotation_of("*.w.example.com"), "listener.cattle.io/cn-_.w.example.com-6d59cf");
        assert_eq!(
            annotation_of("a-very-long-name-indeed.with-many.labels.and-more.labels.example.com"),
            "listener.cattle.io/cn-a-very-long-name-indeed.with-many.-9d0c5c"
        );
    }
}
