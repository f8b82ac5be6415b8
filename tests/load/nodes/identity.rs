//! Who nodes are.

use std::{path::PathBuf, time::SystemTime};

use anyhow::Result;
use k3s_pki::{CertificateAuthority, CertificateFiles, PrivateKey, Profile};
use load::Client;

/// By what clients are signed. kube-apiserver and port 6443 bound what each of them may have at once, so that nodes have a certificate each.
#[derive(clap::Args)]
pub(crate) struct Signer {
    /// The certificate of the cluster's authority for clients.
    #[arg(long)]
    client_ca: PathBuf,
    /// Its key.
    #[arg(long)]
    client_ca_key: PathBuf,
}

/// The authority, and how to reach the API.
pub(crate) struct Identities {
    authority: CertificateAuthority,
    client: Client,
}

/// A node's two clients.
pub(crate) struct Identity {
    pub(crate) kubelet: Client,
    pub(crate) kube_proxy: Client,
}

impl Signer {
    pub(crate) fn identities(self, client: Client) -> Result<Identities> {
        let files = CertificateFiles { certificate: self.client_ca, key: self.client_ca_key };
        Ok(Identities { authority: CertificateAuthority::load(files)?, client })
    }
}

impl Identities {
    /// Of the node of this name, as servers sign them.
    pub(crate) fn of(&self, node: &str) -> Result<Identity> {
        Ok(Identity {
            kubelet: self.client(&format!("system:node:{node}"), Some("system:nodes"))?,
            kube_proxy: self.client("system:kube-proxy", None)?,
        })
    }

    fn client(&self, user: &str, group: Option<&str>) -> Result<Client> {
        let key = PrivateKey::generate()?;
        let certificate =
            self.authority.issue(&Profile::client(user, group), key.public(), SystemTime::now().into())?;
        self.client.holding(&certificate, &key.pem())
    }
}
