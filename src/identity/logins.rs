//! The accounts of `cred/passwd` as a server checks passwords by them: hashed, as in k3s, so that no password stays in memory and
//! guessing one is slow.

use std::collections::{BTreeMap, BTreeSet};

use crate::{error::Error, passwd::Passwd, password::PasswordHash};

/// Who may log in.
#[derive(Debug)]
pub struct Logins {
    users: BTreeMap<String, Login>,
}

#[derive(Debug)]
struct Login {
    password: PasswordHash,
    groups: BTreeSet<String>,
}

impl Logins {
    /// Hashes the passwords. Takes a tenth of a second for each: not for an async worker.
    ///
    /// # Errors
    /// There is no randomness to salt them with.
    pub fn new(passwd: &Passwd) -> Result<Self, Error> {
        let login = |(user, password, groups): (&str, &str, _)| {
            Ok((user.to_owned(), Login { password: PasswordHash::new(password)?, groups }))
        };
        Ok(Self { users: passwd.users().map(login).collect::<Result<_, Error>>()? })
    }

    /// The groups of a user who knows the password; `system:authenticated` is for others to add. As slow as one password of
    /// [`Self::new`].
    pub fn authenticate(&self, user: &str, password: &str) -> Option<&BTreeSet<String>> {
        let login = self.users.get(user)?;
        login.password.verify(password).then_some(&login.groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{passwd::Account, token::Password};

    #[test]
    fn who_knows_the_password_has_the_groups() {
        let mut passwd = Passwd::default();
        passwd.set(Account::Node, &Password::new("s3cret"));
        let logins = Logins::new(&passwd).unwrap();
        assert_eq!(logins.authenticate("node", "s3cret"), Some(&["k3s:agent".to_owned()].into()));
        for (user, password) in [("node", ""), ("node", "s3cret "), ("server", "s3cret"), ("", "")] {
            assert_eq!(logins.authenticate(user, password), None);
        }
        assert!(!format!("{logins:?}").contains("s3cret"));
    }
}
