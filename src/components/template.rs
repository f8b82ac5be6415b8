//! The part of Go's templates that users' containerd templates are made of.
//!
//! Served: `{{ template "base" . }}`, fields such as `{{ .NodeConfig.Containerd.Root }}`, `{{/* comments */}}` and the trim
//! markers `{{-` and `-}}`. Anything else is refused with its line, never dropped: a containerd that silently lost a part of
//! its configuration is worse than one that does not start.

use std::collections::BTreeMap;

/// A template that cannot be rendered.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    /// An action outside the served part.
    #[error(
        "line {line}: the action {{{{ {action} }}}} is not served: use {{{{ template \"base\" . }}}} and plain text, or a file in config-v3.toml.d"
    )]
    Action {
        /// Counted from 1.
        line: usize,
        /// What stands between the braces.
        action: String,
    },
    /// `{{` without `}}`.
    #[error("line {line}: the action is not closed: add }}}}")]
    Unclosed {
        /// Counted from 1.
        line: usize,
    },
}

/// Renders `template`, with `base` for `{{ template "base" . }}` and `fields` by their dotted names.
pub(crate) fn render(
    template: &str,
    base: &str,
    fields: &BTreeMap<&'static str, String>,
) -> Result<String, TemplateError> {
    let mut out = String::new();
    let mut rest = template;
    let mut trim_left = false;
    loop {
        let (text, action) = match rest.split_once("{{") {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        let text = if trim_left { text.trim_start() } else { text };
        let Some(after) = action else {
            out.push_str(text);
            return Ok(out);
        };
        let line = 1 + template[..template.len() - after.len()].matches('\n').count();
        let (inner, tail) = after.split_once("}}").ok_or(TemplateError::Unclosed { line })?;
        let (inner, trims_before) = inner.strip_prefix("- ").map_or((inner, false), |inner| (inner, true));
        let (inner, trims_after) = inner.strip_suffix(" -").map_or((inner, false), |inner| (inner, true));
        out.push_str(if trims_before { text.trim_end() } else { text });
        out.push_str(
            evaluate(inner.trim(), base, fields)
                .ok_or_else(|| TemplateError::Action { line, action: inner.trim().to_owned() })?,
        );
        trim_left = trims_after;
        rest = tail;
    }
}

fn evaluate<'a>(action: &str, base: &'a str, fields: &'a BTreeMap<&'static str, String>) -> Option<&'a str> {
    if action.starts_with("/*") && action.ends_with("*/") {
        return Some("");
    }
    if let Some(argument) = action.strip_prefix("template").map(str::trim) {
        return matches!(argument, "\"base\" ." | "\"base\"" | "`base` .").then_some(base);
    }
    fields.get(action).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str) -> Result<String, TemplateError> {
        render(template, "BASE\n", &BTreeMap::from([(".NodeConfig.Containerd.Root", "/root".to_owned())]))
    }

    #[test]
    fn the_base_is_included_and_text_follows() {
        assert_eq!(rendered("{{ template \"base\" . }}\n[x]\n").unwrap(), "BASE\n\n[x]\n");
    }

    #[test]
    fn fields_comments_and_trim_markers() {
        assert_eq!(rendered("{{/* note */ -}}\n  a = '{{ .NodeConfig.Containerd.Root }}'").unwrap(), "a = '/root'");
        assert_eq!(rendered("a\n {{- template \"base\" . }}").unwrap(), "aBASE\n");
    }

    #[test]
    fn an_action_that_is_not_served_is_named_with_its_line() {
        let error = rendered("x\n{{ if .Y }}z{{ end }}").unwrap_err();
        assert_eq!(error, TemplateError::Action { line: 2, action: "if .Y".into() });
        assert!(error.to_string().contains("{{ if .Y }}"));
        assert_eq!(rendered("x {{ template").unwrap_err(), TemplateError::Unclosed { line: 1 });
    }
}
