//! `cred/passwd`: who may log in by password. CSV without a header: `password,user,uid,"group,group"`.
//!
//! k3s keeps `server` (`k3s:server`) and `node` (`k3s:agent`) there; rows that others added stay.

use std::{collections::BTreeSet, fmt, path::Path};

use k3s_files::{self as files, PRIVATE};

use crate::{error::Error, token::Password};

/// The accounts that k3s itself keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// Servers that join, and `k3s` commands.
    Server,
    /// Agents.
    Node,
}

/// The accounts of a file.
#[derive(Clone, Default)]
pub struct Passwd {
    /// Rows with all their columns, at least three.
    rows: Vec<Vec<String>>,
}

impl Account {
    /// The user's name.
    pub fn user(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Node => "node",
        }
    }

    /// Its only group.
    pub fn group(self) -> &'static str {
        match self {
            Self::Server => "k3s:server",
            Self::Node => "k3s:agent",
        }
    }
}

impl Passwd {
    /// The accounts in a file, none if it is missing or was torn by a power cut.
    ///
    /// # Errors
    /// The file cannot be read, or has a line that is no account.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = files::read(path)?.filter(|text| !files::is_torn(text)).unwrap_or_default();
        let refused = |line, why| Error::Passwd { path: path.to_owned(), line, why };
        let text = String::from_utf8(text).map_err(|_| refused(1, "the file is not UTF-8"))?;
        Self::parse(&text).map_err(|(line, why)| refused(line, why))
    }

    /// An account's password.
    pub fn password(&self, account: Account) -> Option<Password> {
        self.row(account.user()).map(|row| Password::new(row[0].as_str()))
    }

    /// Every user's name and password; the last row of a user counts, as in k3s.
    pub fn passwords(&self) -> impl Iterator<Item = (&str, Password)> {
        self.users().map(|(user, password, _)| (user, Password::new(password)))
    }

    /// Every user with its password and groups; the last row of a user counts, as in k3s.
    pub(crate) fn users(&self) -> impl Iterator<Item = (&str, &str, BTreeSet<String>)> {
        let rows = self.rows.iter().filter(|row| self.row(&row[1]).is_some_and(|last| std::ptr::eq(*row, last)));
        rows.map(|row| {
            let groups =
                row.get(3).into_iter().flat_map(|groups| groups.split(',')).map(|group| group.trim().to_owned());
            (row[1].as_str(), row[0].as_str(), groups.collect())
        })
    }

    /// Gives an account this password and its group.
    pub fn set(&mut self, account: Account, password: &Password) {
        let (user, group) = (account.user(), account.group());
        let row = [password.expose(), user, user, group].map(str::to_owned).to_vec();
        match self.rows.iter_mut().rev().find(|row| row[1] == user) {
            Some(old) => *old = row,
            None => self.rows.push(row),
        }
    }

    /// Writes the accounts, if they differ from what is there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn store(&self, path: &Path) -> Result<(), Error> {
        files::write(path, self.to_csv().as_bytes(), PRIVATE)?;
        Ok(())
    }

    /// The last row counts, as in k3s.
    fn row(&self, user: &str) -> Option<&Vec<String>> {
        self.rows.iter().rev().find(|row| row[1] == user)
    }

    /// The file's text.
    pub(crate) fn to_csv(&self) -> String {
        self.rows.iter().map(|row| row.iter().map(|field| quoted(field)).collect::<Vec<_>>().join(",") + "\n").collect()
    }

    /// RFC 4180; an error says in which line a row begins that has it.
    pub(crate) fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut rows = Vec::new();
        let (mut rest, mut line) = (text, 1);
        while !rest.is_empty() {
            let (row, tail) = parse_row(rest).map_err(|why| (line, why))?;
            // A blank line is no row.
            if row != [""] {
                if row.len() < 3 {
                    return Err((line, "there must be at least password, user and uid, with commas between"));
                }
                rows.push(row);
            }
            line += rest[..rest.len() - tail.len()].matches('\n').count();
            rest = tail;
        }
        Ok(Self { rows })
    }
}

impl fmt::Debug for Passwd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.rows.iter().map(|row| &row[1])).finish()
    }
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\r', '\n']) || field.starts_with(char::is_whitespace) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

/// One row, and what follows it.
fn parse_row(text: &str) -> Result<(Vec<String>, &str), &'static str> {
    let mut row = Vec::new();
    let mut rest = text;
    loop {
        let field;
        (field, rest) = parse_field(rest)?;
        row.push(field);
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => break,
        }
    }
    let rest = rest.strip_prefix('\r').unwrap_or(rest);
    match rest.strip_prefix('\n') {
        Some(next) => Ok((row, next)),
        None if rest.is_empty() => Ok((row, rest)),
        None => Err("there is text after a closing quote"),
    }
}

fn parse_field(text: &str) -> Result<(String, &str), &'static str> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find([',', '\n']).unwrap_or(text.len());
        let (field, rest) = text.split_at(end);
        let (field, rest) = match field.strip_suffix('\r') {
            Some(field) => (field, rest),
            None => (field, rest),
        };
        return if field.contains('"') {
            Err("there is a quote inside an unquoted field")
        } else {
            Ok((field.into(), rest))
        };
    };
    let mut field = String::new();
    loop {
        let (part, tail) = rest.split_once('"').ok_or("a quote is not closed")?;
        field.push_str(part);
        match tail.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None => return Ok((field, tail)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_of_k3s_is_read() {
        let passwd = Passwd::parse("s3cret,node,node,k3s:agent\ns3cret,server,server,k3s:server\n").unwrap();
        let users: Vec<_> = passwd.users().collect();
        assert_eq!(
            users,
            [
                ("node", "s3cret", BTreeSet::from(["k3s:agent".to_owned()])),
                ("server", "s3cret", BTreeSet::from(["k3s:server".to_owned()])),
            ]
        );
    }

    #[test]
    fn the_last_row_of_a_user_counts() {
        let passwd = Passwd::parse("old,ops,1,a\nother,them,2\nnew,ops,3,\"b,c\"\n").unwrap();
        let users: Vec<_> = passwd.users().map(|(user, password, groups)| (user, password, groups.len())).collect();
        assert_eq!(users, [("them", "other", 0), ("ops", "new", 2)]);
    }

    #[test]
    fn rows_of_others_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        std::fs::write(&path, "\"a,\"\"b\",ops,7,\"k3s:server,auditors\",more\n\nold,server,server,k3s:server\r\n")
            .unwrap();
        let mut passwd = Passwd::load(&path).unwrap();
        passwd.set(Account::Server, &Password::new("new"));
        passwd.set(Account::Node, &Password::new("newer"));
        passwd.store(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "\"a,\"\"b\",ops,7,\"k3s:server,auditors\",more\nnew,server,server,k3s:server\nnewer,node,node,k3s:agent\n"
        );
        let again = Passwd::load(&path).unwrap();
        let (user, password, groups) = again.users().next().unwrap();
        assert_eq!((user, password), ("ops", "a,\"b"));
        assert!(groups.iter().eq(["auditors", "k3s:server"]));
    }

    #[test]
    fn a_broken_file_is_refused_with_its_line() {
        for (text, line, why) in [
            ("a,b,c\nonly,two\n", 2, "at least password, user and uid"),
            ("\"x\ny\",b,c\na,b\n", 3, "at least"),
            ("a,\"b,c\n", 1, "not closed"),
            ("a,\"b\"x,c\n", 1, "after a closing quote"),
            ("a,b\"x,c\n", 1, "inside an unquoted"),
        ] {
            let (at, what) = Passwd::parse(text).unwrap_err();
            assert!(at == line && what.contains(why), "{text:?}: {at} {what}");
        }
    }

    #[test]
    fn passwords_do_not_reach_logs() {
        assert_eq!(format!("{:?}", Passwd::parse("s3cret,node,node,k3s:agent\n").unwrap()), "[\"node\"]");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(rows in proptest::collection::vec(proptest::collection::vec("[ -~\r\n]{0,8}", 3..6), 0..5)) {
            let passwd = Passwd { rows: rows.clone() };
            prop_assert_eq!(Passwd::parse(&passwd.to_csv()).unwrap().rows, rows);
        }
    }
}
