//! The certificates that nodes ask for.

/// Which one. A request for it posts a signing request; those of kubelet say for which node ([`NODE_NAME`](crate::NODE_NAME)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateKind {
    /// Kubelet shows it to kube-apiserver.
    ServingKubelet,
    /// Kubelet shows it as the user `system:node:<name>`.
    ClientKubelet,
    /// kube-proxy's.
    ClientKubeProxy,
    /// The agent's own.
    ClientK3sController,
}

impl CertificateKind {
    /// Where it is asked for.
    pub const fn path(self) -> &'static str {
        match self {
            Self::ServingKubelet => "/v1-k3s/serving-kubelet.crt",
            Self::ClientKubelet => "/v1-k3s/client-kubelet.crt",
            Self::ClientKubeProxy => "/v1-k3s/client-kube-proxy.crt",
            Self::ClientK3sController => "/v1-k3s/client-k3s-controller.crt",
        }
    }
}
