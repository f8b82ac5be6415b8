//! Flags that may stand before the verb, as in k3s.

use std::ffi::OsString;

use clap::Args;

#[derive(Debug, Default, Args)]
pub(super) struct Globals {
    /// Log what is done in detail
    #[arg(long)]
    pub(super) debug: bool,
    /// Where the server or agent keeps its state
    #[arg(short, long, value_name = "DIR")]
    pub(super) data_dir: Option<OsString>,
}

impl Globals {
    /// `args` of a verb that has these flags of its own, with the ones before it at their front: its own count then.
    pub(super) fn before(self, args: Vec<OsString>) -> Vec<OsString> {
        let debug = self.debug.then(|| "--debug".into());
        let data_dir = self.data_dir.into_iter().flat_map(|dir| ["--data-dir".into(), dir]);
        debug.into_iter().chain(data_dir).chain(args).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_the_verb_stands_before_its_flags() {
        let before = |debug, data_dir: Option<&str>| {
            let globals = Globals { debug, data_dir: data_dir.map(OsString::from) };
            globals.before(vec!["--data-dir=/own".into()])
        };
        assert_eq!(before(false, None), ["--data-dir=/own"]);
        assert_eq!(before(true, Some("/srv")), ["--debug", "--data-dir", "/srv", "--data-dir=/own"]);
    }
}
