//! The paths, byte by byte.

/// Whether the server lives; for everybody.
pub const PING: &str = "/ping";
/// What servers are checked by, PEM; for everybody: a node compares it with its token.
pub const CACERTS: &str = "/cacerts";
/// Files of `<data>/server/static`; for everybody.
pub const STATIC: &str = "/static/";

/// What a node has to know of its cluster: a [`ClusterDocument`](crate::ClusterDocument).
pub const CONFIG: &str = "/v1-k3s/config";
/// Where the API is reached: a list of `address:port`.
pub const APISERVERS: &str = "/v1-k3s/apiservers";
/// Whether the server can let nodes in.
pub const READYZ: &str = "/v1-k3s/readyz";
/// What checks clients of kubelet, PEM.
pub const CLIENT_CA: &str = "/v1-k3s/client-ca.crt";
/// What checks servers, PEM.
pub const SERVER_CA: &str = "/v1-k3s/server-ca.crt";

/// What all servers have in common: a [`BootstrapData`](crate::BootstrapData).
pub const SERVER_BOOTSTRAP: &str = "/v1-k3s/server-bootstrap";
/// Takes a [`TokenRotation`](crate::TokenRotation).
pub const TOKEN: &str = "/v1-k3s/token";
/// Takes other authorities: a [`BootstrapData`](crate::BootstrapData).
pub const AUTHORITIES: &str = "/v1-k3s/cert/cacerts";
/// How Secrets are encrypted.
pub const ENCRYPTION_STATUS: &str = "/v1-k3s/encrypt/status";
/// Takes another way to encrypt them.
pub const ENCRYPTION_CONFIG: &str = "/v1-k3s/encrypt/config";

/// The members of the cluster's etcd: a [`MembersDocument`](crate::MembersDocument).
pub const DB_INFO: &str = "/db/info";
