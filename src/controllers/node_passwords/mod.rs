//! What the cluster remembers of nodes' passwords, so that nobody takes another node's name: the Secrets
//! `<node>.node-password.k3s` in kube-system, as k3s keeps them.
//!
//! ```text
//! first join under a name ─► Secret with the password's hash (`secret.rs`)
//!   └─ the Node appears   ─► the Secret is the Node's, and goes with it (`owners.rs`)
//!   └─ it never appears   ─► after ten minutes the Secret is deleted, the name is free again (`owners.rs`)
//! ```

mod legacy;
mod owners;
mod secret;

pub use legacy::migrate_node_passwords;
pub use owners::NodePasswordOwners;
pub use secret::{
    NodePasswordError, ensure_node_password, node_exists, node_password_secret, replace_node_password, tell_of_deferred,
};
