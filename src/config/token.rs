//! The tokens that nodes join with, as far as a configuration can tell a right one from a wrong one.
//!
//! ```text
//! K10<64 hex digits or none>::<user>:<password>      K10<…>::<6 letters>.<16 letters>      <password>
//! ```
//!
//! No error tells anything of the token.

use std::io;

use crate::{
    environment::Environment,
    error::Error,
    secret::Secret,
    values::{Given, Values},
    whole_file,
};

/// The token in the flag `text` or in the file that the flag `file` names, if one of them is given.
pub(crate) fn find(
    values: &Values,
    text: &'static str,
    file: &'static str,
    environment: &Environment,
) -> Result<Option<Given>, Error> {
    let given = match (values.given(text), values.given(file)) {
        (Some(token), Some(file)) => {
            let problem = format!("the token is given here and by {} too; keep one of them", token.place);
            return Err(file.invalid(problem));
        }
        (Some(token), None) => token.clone(),
        (None, Some(file)) => read(file, environment)?,
        (None, None) => return Ok(None),
    };
    let problem = "the token holds white space or control characters; copy it again, without line breaks";
    if given.text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        Err(given.invalid(problem))
    } else {
        Ok(Some(given))
    }
}

/// The password in a server's own token; k3s takes the full form too and keeps its password.
pub(crate) fn password(token: &Given) -> Result<Secret, Error> {
    let password = match parse(&token.text) {
        Ok(Token::Bare(password) | Token::User { password }) => Ok(password),
        Ok(Token::Bootstrap) => Err("a bootstrap token cannot be a server's own token; give a password"),
        Err(problem) => Err(problem),
    };
    password.map(Secret::new).map_err(|problem| token.invalid(problem))
}

/// The whole token, to join with.
pub(crate) fn joining(token: &Given) -> Result<Secret, Error> {
    parse(&token.text).map(|_| Secret::new(token.text.clone())).map_err(|problem| token.invalid(problem))
}

enum Token<'a> {
    Bare(&'a str),
    User { password: &'a str },
    Bootstrap,
}

fn parse(text: &str) -> Result<Token<'_>, &'static str> {
    let Some(rest) = text.strip_prefix("K10") else { return Ok(Token::Bare(text)) };
    let (hash, credentials) = rest.split_once("::").unwrap_or(("", rest));
    if !(hash.is_empty() || (hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()))) {
        return Err("the CA hash after K10 is not 64 hexadecimal digits; copy the whole token");
    }
    match credentials.split_once(':') {
        Some((_, "")) => Err("the token has no password after the user's name; copy the whole token"),
        Some((_, password)) => Ok(Token::User { password }),
        None if is_bootstrap(credentials) => Ok(Token::Bootstrap),
        None => Err("the token starts with K10 but holds no user and password; copy the whole token"),
    }
}

fn is_bootstrap(text: &str) -> bool {
    let is =
        |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.split_once('.').is_some_and(|(id, secret)| is(id, 6) && is(secret, 16))
}

fn read(file: &Given, environment: &Environment) -> Result<Given, Error> {
    let path = file.path(environment)?;
    let text = whole_file::read(&path).and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other));
    let text = text.map_err(|error| file.unreadable(&path, error))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(file.invalid(format!("{} is empty; write the token into it", path.display())));
    }
    Ok(Given { place: file.place.clone(), text: token.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Origin, Place};

    fn given(text: &str) -> Given {
        Given { place: Place { flag: "token", origin: Origin::CommandLine }, text: text.to_owned() }
    }

    #[test]
    fn a_server_keeps_the_password() {
        let hash = "0123456789abcdef".repeat(4);
        for text in ["pa:ss", &format!("K10{hash}::server:pa:ss"), "K10::server:pa:ss", "K10server:pa:ss"] {
            assert_eq!(password(&given(text)).expect(text).expose(), "pa:ss", "{text}");
        }
    }

    #[test]
    fn whoever_joins_keeps_the_whole_token() {
        for text in ["pass", "K10::node:pass", "K10::abcdef.0123456789abcdef"] {
            assert_eq!(joining(&given(text)).expect(text).expose(), text);
        }
    }

    #[test]
    fn wrong_tokens_are_refused_without_being_told() {
        for text in ["K10beef::server:hunter2", "K10::server:", "K10hunter2", "K10::abcdef.0123456789abcdef"] {
            let error = password(&given(text)).expect_err(text).to_string();
            assert!(
                error.starts_with("--token: ") && !error.contains("hunter2") && !error.contains("abcdef"),
                "{error}"
            );
        }
    }
}
