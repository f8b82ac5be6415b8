//! `<data>/agent`: what the components of a node prove themselves with.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    error::Error,
    files::{self, PRIVATE},
    kubeconfig::ComponentKubeconfig,
    leaf::CertificateFiles,
    node::NodeCertificate,
    san::HostName,
    server::ServerPki,
};

/// What a node is.
#[derive(Debug, Clone)]
pub struct AgentRequest {
    /// Its name.
    pub node_name: HostName,
    /// Its addresses, inner and outer.
    pub node_ips: Vec<IpAddr>,
    /// Where its components reach the API, as `https://127.0.0.1:6444`.
    pub apiserver: String,
    /// The time now.
    pub now: SystemTime,
}

/// A node's keys, certificates and kubeconfigs.
#[derive(Debug, Clone)]
pub struct AgentPki {
    /// Checks clients of kubelet.
    pub client_ca: PathBuf,
    /// Checks the API server.
    pub server_ca: PathBuf,
    /// kubelet's serving certificate.
    pub serving_kubelet: CertificateFiles,
    /// kubelet as a client.
    pub client_kubelet: CertificateFiles,
    /// kube-proxy as a client.
    pub client_kube_proxy: CertificateFiles,
    /// The agent's own controllers as a client.
    pub client_k3s_controller: CertificateFiles,
    /// kubelet's.
    pub kubelet_kubeconfig: PathBuf,
    /// kube-proxy's.
    pub kube_proxy_kubeconfig: PathBuf,
    /// The agent's own controllers'.
    pub k3s_controller_kubeconfig: PathBuf,
}

impl AgentPki {
    /// Makes everything in `dir` of a node whose server runs in this process: signed directly, not over HTTP.
    ///
    /// # Errors
    /// A file cannot be read or written, or a key is one that is not known.
    pub fn ensure(dir: &Path, request: &AgentRequest, server: &ServerPki) -> Result<Self, Error> {
        files::create_directory(dir, 0o700)?;
        let pki = Self::at(dir);
        files::write(&pki.client_ca, server.client_ca.bundle(), PRIVATE)?;
        files::write(&pki.server_ca, server.server_ca.bundle(), PRIVATE)?;

        let (node, ips) = (request.node_name.clone(), request.node_ips.clone());
        for (files, certificate) in [
            (&pki.serving_kubelet, NodeCertificate::ServingKubelet { node: node.clone(), ips }),
            (&pki.client_kubelet, NodeCertificate::ClientKubelet { node }),
            (&pki.client_kube_proxy, NodeCertificate::ClientKubeProxy),
            (&pki.client_k3s_controller, NodeCertificate::ClientK3sController),
        ] {
            files.ensure(&certificate.profile(), server.authority_of(&certificate), request.now.into())?;
        }
        pki.write_kubeconfigs(&request.apiserver)?;
        Ok(pki)
    }

    /// Where everything lies, whether or not it exists.
    pub fn at(dir: &Path) -> Self {
        Self {
            client_ca: dir.join("client-ca.crt"),
            server_ca: dir.join("server-ca.crt"),
            serving_kubelet: CertificateFiles::at(dir, "serving-kubelet"),
            client_kubelet: CertificateFiles::at(dir, "client-kubelet"),
            client_kube_proxy: CertificateFiles::at(dir, "client-kube-proxy"),
            client_k3s_controller: CertificateFiles::at(dir, "client-k3s-controller"),
            kubelet_kubeconfig: dir.join("kubelet.kubeconfig"),
            kube_proxy_kubeconfig: dir.join("kubeproxy.kubeconfig"),
            k3s_controller_kubeconfig: dir.join("k3scontroller.kubeconfig"),
        }
    }

    /// Points the components' kubeconfigs to `apiserver`.
    ///
    /// # Errors
    /// One of them cannot be written.
    pub fn write_kubeconfigs(&self, apiserver: &str) -> Result<(), Error> {
        for (path, client) in [
            (&self.kubelet_kubeconfig, &self.client_kubelet),
            (&self.kube_proxy_kubeconfig, &self.client_kube_proxy),
            (&self.k3s_controller_kubeconfig, &self.client_k3s_controller),
        ] {
            ComponentKubeconfig { server: apiserver, certificate_authority: &self.server_ca, client }.write(path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{certificate::Certificate, server::tests::request as server_request};

    fn request() -> AgentRequest {
        AgentRequest {
            node_name: "edge-1".parse().unwrap(),
            node_ips: vec![[192, 0, 2, 10].into()],
            apiserver: "https://127.0.0.1:6444".into(),
            now: server_request().now,
        }
    }

    #[test]
    fn a_node_beside_its_server_has_what_a_joined_one_would_have() {
        let dir = tempfile::tempdir().unwrap();
        let server = ServerPki::ensure(&dir.path().join("server"), &server_request()).unwrap();
        let pki = AgentPki::ensure(&dir.path().join("agent"), &request(), &server).unwrap();

        let certificate =
            |files: &CertificateFiles| Certificate::first_of(&fs::read(&files.certificate).unwrap()).unwrap();
        let serving = certificate(&pki.serving_kubelet);
        assert_eq!(serving.common_name.as_deref(), Some("edge-1"));
        let names: Vec<String> = serving.sans.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["edge-1", "localhost", "127.0.0.1", "192.0.2.10"]);
        assert_eq!(serving.issuer, server.server_ca.certificate().subject);
        let client = certificate(&pki.client_kubelet);
        assert_eq!(client.common_name.as_deref(), Some("system:node:edge-1"));
        assert!(client.organizations.iter().eq(["system:nodes"]));
        assert_eq!(client.issuer, server.client_ca.certificate().subject);
        assert_eq!(fs::read(&pki.server_ca).unwrap(), server.server_ca.bundle());
        let kubeconfig = fs::read_to_string(&pki.kubelet_kubeconfig).unwrap();
        assert!(kubeconfig.contains("    server: https://127.0.0.1:6444\n"), "{kubeconfig}");
    }

    #[test]
    fn a_renamed_node_keeps_its_keys() {
        let dir = tempfile::tempdir().unwrap();
        let server = ServerPki::ensure(&dir.path().join("server"), &server_request()).unwrap();
        let pki = AgentPki::ensure(&dir.path().join("agent"), &request(), &server).unwrap();
        let read = |files: &CertificateFiles| [&files.certificate, &files.key].map(|path| fs::read(path).unwrap());
        let [certificate, key] = read(&pki.client_kubelet);
        let proxy = read(&pki.client_kube_proxy);
        let renamed = AgentRequest { node_name: "edge-2".parse().unwrap(), ..request() };
        AgentPki::ensure(&dir.path().join("agent"), &renamed, &server).unwrap();
        let after = read(&pki.client_kubelet);
        assert_ne!(after[0], certificate);
        assert_eq!(after[1], key);
        assert_eq!(read(&pki.client_kube_proxy), proxy);
    }
}
