//! Whom the certificates of a server and of a node belong to, by the names that `k3s certificate` has for them.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::SystemTime,
};

use crate::{
    error::Error,
    files::{self, PRIVATE, failed},
    leaf::CertificateFiles,
};

/// A holder of certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named after what they are")]
pub enum Service {
    Admin,
    ApiServer,
    AuthProxy,
    CloudController,
    ControllerManager,
    Etcd,
    K3sController,
    /// The front on 6443.
    K3sServer,
    KubeProxy,
    Kubelet,
    Scheduler,
    Supervisor,
}

/// A name that k3s has for nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is none of {}", Service::ALL.map(Service::name).join(", "))]
pub struct NoService;

impl Service {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Admin,
        Self::ApiServer,
        Self::AuthProxy,
        Self::CloudController,
        Self::ControllerManager,
        Self::Etcd,
        Self::K3sController,
        Self::K3sServer,
        Self::KubeProxy,
        Self::Kubelet,
        Self::Scheduler,
        Self::Supervisor,
    ];

    /// As k3s calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ApiServer => "api-server",
            Self::AuthProxy => "auth-proxy",
            Self::CloudController => "cloud-controller",
            Self::ControllerManager => "controller-manager",
            Self::Etcd => "etcd",
            Self::K3sController => "k3s-controller",
            Self::K3sServer => "k3s-server",
            Self::KubeProxy => "kube-proxy",
            Self::Kubelet => "kubelet",
            Self::Scheduler => "scheduler",
            Self::Supervisor => "supervisor",
        }
    }

    /// Its certificates below the data directory, each without `.crt` and `.key`; the front's is no such file.
    const fn stems(self) -> &'static [&'static str] {
        match self {
            Self::Admin => &["server/tls/client-admin"],
            Self::ApiServer => &["server/tls/client-kube-apiserver", "server/tls/serving-kube-apiserver"],
            Self::AuthProxy => &["server/tls/client-auth-proxy"],
            Self::CloudController => &["server/tls/client-k3s-cloud-controller"],
            Self::ControllerManager => {
                &["server/tls/client-controller", "server/tls/kube-controller-manager/kube-controller-manager"]
            }
            Self::Etcd => {
                &["server/tls/etcd/client", "server/tls/etcd/server-client", "server/tls/etcd/peer-server-client"]
            }
            Self::K3sController => &["server/tls/client-k3s-controller", "agent/client-k3s-controller"],
            Self::K3sServer => &[],
            Self::KubeProxy => &["server/tls/client-kube-proxy", "agent/client-kube-proxy"],
            Self::Kubelet => &[
                "server/tls/client-kubelet",
                "server/tls/serving-kubelet",
                "agent/client-kubelet",
                "agent/serving-kubelet",
            ],
            Self::Scheduler => &["server/tls/client-scheduler", "server/tls/kube-scheduler/kube-scheduler"],
            Self::Supervisor => &["server/tls/client-supervisor"],
        }
    }

    /// Where its certificates and keys lie below `data`, whether or not they exist.
    pub fn files(self, data: &Path) -> impl Iterator<Item = CertificateFiles> {
        self.stems().iter().map(|stem| CertificateFiles::at(data, stem))
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Service {
    type Err = NoService;

    fn from_str(text: &str) -> Result<Self, NoService> {
        Self::ALL.into_iter().find(|service| service.name() == text).ok_or(NoService)
    }
}

/// Removes the certificates and keys of these services below `data`, so that the next start makes new ones, and returns the folder where
/// all of before are kept (`tls-<unix time>`, as in k3s). Authorities stay where they are.
///
/// # Errors
/// [`Error::File`]; nothing is removed before everything is kept.
pub fn set_aside(data: &Path, services: &[Service], now: SystemTime) -> Result<PathBuf, Error> {
    let (server, agent) = (data.join("server"), data.join("agent"));
    let unix = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let tls = server.join("tls");
    let is_server = tls.is_dir();
    let kept = if is_server { &server } else { &agent }.join(format!("tls-{unix}"));
    files::create_directory(&kept, 0o700)?;
    if is_server {
        copy_folder(&tls, &kept)?;
    }
    let removed: Vec<PathBuf> = services
        .iter()
        .flat_map(|service| service.files(data))
        .flat_map(|CertificateFiles { certificate, key }| [certificate, key])
        .collect();
    for path in removed.iter().filter(|path| path.starts_with(&agent)) {
        if let (Some(contents), Some(name)) = (files::read(path)?, path.file_name()) {
            files::write(&kept.join(name), &contents, PRIVATE)?;
        }
    }
    if is_server && services.contains(&Service::K3sServer) {
        files::write(&tls.join("dynamic-cert-regenerate"), b"", PRIVATE)?;
    }
    for path in &removed {
        files::remove(path)?;
    }
    Ok(kept)
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(from).map_err(failed("read", from))? {
        let path = entry.map_err(failed("read", from))?.path();
        let Some(name) = path.file_name() else { continue };
        let copy = to.join(name);
        if path.is_dir() {
            files::create_directory(&copy, 0o700)?;
            copy_folder(&path, &copy)?;
        } else if let Some(contents) = files::read(&path)? {
            files::write(&copy, &contents, PRIVATE)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::{AgentPki, AgentRequest},
        server::{ServerPki, tests::request},
    };

    fn ensure(data: &Path) {
        let server = ServerPki::ensure(&data.join("server"), &request()).unwrap();
        server.front_certificate(&[], request().now).unwrap();
        let node = AgentRequest {
            node_name: "edge-1".parse().unwrap(),
            node_ips: vec![[192, 0, 2, 10].into()],
            apiserver: server.apiserver_url(),
            now: request().now,
        };
        AgentPki::ensure(&data.join("agent"), &node, &server).unwrap();
    }

    #[test]
    fn names_are_k3s_own() {
        for service in Service::ALL {
            assert_eq!(service.to_string().parse(), Ok(service));
        }
        let unknown = "certificate-authority".parse::<Service>().unwrap_err().to_string();
        assert!(unknown.starts_with("it is none of admin, api-server, auth-proxy"), "{unknown}");
    }

    #[test]
    fn every_leaf_belongs_to_somebody() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path());
        let owned: Vec<_> = Service::ALL.iter().flat_map(|service| service.files(dir.path())).collect();
        for folder in ["server/tls", "server/tls/etcd", "server/tls/kube-scheduler", "agent"] {
            for entry in fs::read_dir(dir.path().join(folder)).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                if name.ends_with(".crt") && !name.contains("-ca.") {
                    assert!(owned.iter().any(|files| files.certificate == path), "{}", path.display());
                }
            }
        }
    }

    #[test]
    fn what_is_set_aside_is_kept_and_made_again_with_other_keys() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read(dir.path().join(path)).unwrap();
        ensure(dir.path());
        let taken = ["server/tls/client-admin.key", "agent/client-kubelet.key", "server/tls/dynamic-cert.json"];
        let (before, authority, other) =
            (taken.map(read), read("server/tls/client-ca.key"), read("server/tls/client-scheduler.key"));
        let kept =
            set_aside(dir.path(), &[Service::Admin, Service::Kubelet, Service::K3sServer], request().now).unwrap();
        assert_eq!(kept, dir.path().join("server/tls-1800000000"));
        assert!(!dir.path().join(taken[0]).exists() && !dir.path().join(taken[1]).exists());
        for (path, contents) in taken.iter().zip(&before) {
            assert_eq!(fs::read(kept.join(Path::new(path).file_name().unwrap())).unwrap(), *contents);
        }
        ensure(dir.path());
        for (path, contents) in taken.iter().zip(&before) {
            assert_ne!(read(path), *contents, "{path}");
        }
        assert_eq!((read("server/tls/client-ca.key"), read("server/tls/client-scheduler.key")), (authority, other));
    }

    #[test]
    fn an_agent_keeps_its_own_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path());
        fs::remove_dir_all(dir.path().join("server")).unwrap();
        let key = fs::read(dir.path().join("agent/client-kubelet.key")).unwrap();
        let kept = set_aside(dir.path(), &Service::ALL, request().now).unwrap();
        assert_eq!(kept, dir.path().join("agent/tls-1800000000"));
        assert_eq!(fs::read(kept.join("client-kubelet.key")).unwrap(), key);
        assert!(
            dir.path().join("agent/server-ca.crt").exists() && !dir.path().join("agent/client-kubelet.crt").exists()
        );
    }
}
