//! What makes a machine the same again when its data partition had to be replaced: kept on the ESP where its first-boot file wants it.

use k3s_config::Environment;
use k3s_identity::{NodeFiles, Password};

use crate::{Configured, Error, FirstBoot, Machine};

/// The initrd puts it into the fresh partition.
const MACHINE_ID: &str = "machine-id";
const NODE_PASSWORD: &str = "node-password";

impl Machine {
    /// Keeps the first-boot file with `bytes`, and who the machine is. The node's password is drawn for it, before the node's first start.
    pub(crate) fn keep_identity(&self, bytes: &[u8]) -> Result<(), Error> {
        let id = k3s_files::read_existing(&self.own(MACHINE_ID))?;
        let password = self.node_files().password(&self.root().join("var/lib/rancher/k3s/agent/node-password.txt"))?;
        self.esp().keep_identity(MACHINE_ID, &id)?;
        self.esp().keep_identity(NODE_PASSWORD, password.expose().as_bytes())?;
        Ok(self.esp().keep_identity(FirstBoot::NAME, bytes)?)
    }

    /// Takes what is kept, if anything is.
    pub(crate) fn take_kept_identity(&self, environment: &Environment) -> Result<Configured, Error> {
        let Some(bytes) = self.esp().identity(FirstBoot::NAME)? else { return Ok(Configured::Waiting) };
        let wanted = FirstBoot::parse(&bytes)?;
        self.check(&wanted, None, environment)?;
        if let Some(password) = self.esp().identity(NODE_PASSWORD)? {
            self.node_files().store_password(&Password::new(String::from_utf8_lossy(&password)))?;
        }
        self.write(&wanted)?;
        Ok(Configured::TakenAgain(wanted.role, self.hostname()?))
    }

    fn node_files(&self) -> NodeFiles {
        NodeFiles::new(&self.root().join("var/lib/rancher/etc"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::Host;

    const FILE: &str = "role: agent\nhostname: kiosk-7\nkeep-identity: true\nconfig:\n  server: https://10.0.0.1:6443\n  token: secret\n";
    const PASSWORD: &str = "var/lib/rancher/etc/node/password";

    #[test]
    fn a_machine_whose_data_partition_was_replaced_is_the_same_again() {
        let host = Host::new();
        host.given(FILE);
        assert_eq!(host.read("efi/first-boot.yaml"), None);
        let password = host.read(PASSWORD).unwrap();

        host.replace_data();
        assert_eq!(
            host.configure().unwrap().sentence(),
            "first-boot.yaml was taken as the ESP has kept it: this machine is kiosk-7, role agent, with the identity that it had."
        );
        assert_eq!(host.read(PASSWORD), Some(password));
        assert_eq!(
            host.read("efi/status.txt").unwrap().lines().next().unwrap().split(". ").next().unwrap(),
            "The data partition could not be mended, and was replaced by an empty one: what this machine had stored is gone"
        );
        assert_eq!(host.configure().unwrap(), Configured::Settled(k3s_config::Role::Agent));
    }

    #[test]
    fn nothing_is_kept_unless_it_is_wanted() {
        let host = Host::new();
        host.given(FILE);
        host.given(&FILE.replace("keep-identity: true\n", ""));
        assert!(!host.path("efi/identity").exists());
        host.replace_data();
        assert_eq!(host.configure().unwrap(), Configured::Waiting);
        assert!(host.read("efi/status.txt").unwrap().starts_with("The data partition could not be mended, "));
    }
}
