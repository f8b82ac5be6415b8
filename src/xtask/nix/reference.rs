//! `docs/nixos-options.md`, made of the module's options.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde::Deserialize;

const HEAD: &str = "# Options of `services.k3s`

Made of the module by `cargo xtask nix write`. Options marked with * are nixpkgs', with the same name, type and default.
";

/// One option, as `tests/nix/reference.nix` hands it out.
#[derive(Debug, Deserialize)]
struct Documented {
    /// Below `services.k3s`.
    name: String,
    #[serde(rename = "type")]
    kind: String,
    /// As Nix or Markdown text; none if the option has to be set.
    default: Option<String>,
    description: String,
    /// Whether nixpkgs' module has it.
    inherited: bool,
}

/// The page, of what the options evaluate to.
pub(super) fn page(options: &[u8]) -> Result<String> {
    let options: Vec<Documented> = serde_json::from_slice(options).context("The options are not what was expected")?;
    let (settings, others): (Vec<_>, Vec<_>) = options.iter().partition(|option| option.name.starts_with("settings."));
    let mut page = format!("{HEAD}\n| Option | Type | Default | |\n|---|---|---|---|\n");
    for option in others {
        row(&mut page, option, &option.name)?;
    }
    page += "\n## `settings`\n\nThe keys of config.yaml. All are null unless set.\n\n| Key | Type | |\n|---|---|---|\n";
    for option in settings {
        let key = option.name.trim_start_matches("settings.");
        writeln!(
            page,
            "| `{key}` | {} | {} |",
            cell(option.kind.trim_start_matches("null or ")),
            cell(&option.description)
        )?;
    }
    Ok(page)
}

fn row(page: &mut String, option: &Documented, name: &str) -> std::fmt::Result {
    let mark = if option.inherited { "*" } else { "" };
    let default = option.default.as_deref().map(|text| {
        if text.contains('`') || text.contains(' ') && !text.starts_with(['"', '[', '{']) {
            text.to_owned()
        } else {
            format!("`{text}`")
        }
    });
    writeln!(
        page,
        "| `{name}`{mark} | {} | {} | {} |",
        cell(&option.kind),
        cell(default.as_deref().unwrap_or_default()),
        cell(&option.description)
    )
}

/// One line, with no bar that would end the cell, and without the roles that nixpkgs' Markdown marks words with.
fn cell(text: &str) -> String {
    text.replace("{file}", "").replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_a_row() {
        let options = br#"[
            {"name": "role", "type": "one of \"server\", \"agent\"", "default": "\"server\"", "description": "A role.\nOf two.", "inherited": true},
            {"name": "settings.v", "type": "null or integer", "default": "null", "description": "a | b in {file}`f`", "inherited": false}
        ]"#;
        let page = page(options).unwrap();
        assert!(
            page.contains("\n| `role`* | one of \"server\", \"agent\" | `\"server\"` | A role. Of two. |\n"),
            "{page}"
        );
        assert!(page.contains("\n| `v` | integer | a \\| b in `f` |\n"), "{page}");
    }
}
