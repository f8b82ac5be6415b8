//! Who joins: tokens and the accounts behind them, a node's name suffix and its password.

mod bootstrap_token;
mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod logins;
mod node;
mod passwd;
mod password;
mod rotation;
mod token;
mod token_files;

pub use bootstrap_token::{
    BadSecret, BootstrapGroup, BootstrapToken, BootstrapTokenSecret, DEFAULT_GROUP, NoBootstrapGroup, NoBootstrapToken,
    NoUsage, SECRET_TYPE, Usage,
};
pub use error::Error;
pub use logins::Logins;
pub use node::NodeFiles;
pub use passwd::{Account, Passwd};
pub use password::{MalformedHash, PasswordHash};
pub use rotation::Rotation;
pub use token::{CaHash, Credentials, Password, Token, TokenError};
pub use token_files::TokenFiles;
