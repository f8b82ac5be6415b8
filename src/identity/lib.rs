//! Who joins: tokens and the accounts behind them, a node's name suffix and its password.

mod error;
mod node;
mod passwd;
mod password;
mod token;
mod token_files;

pub use error::Error;
pub use node::NodeFiles;
pub use passwd::{Account, Passwd};
pub use password::{MalformedHash, PasswordHash};
pub use token::{CaHash, Credentials, Password, Token, TokenError};
pub use token_files::TokenFiles;
