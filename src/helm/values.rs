//! The values of a chart: files in the order in which later ones win, and `--set` arguments, which win over all of them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A values file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ValuesFile {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
    /// Whether a change of it is a change of what is wanted.
    pub(crate) counts: bool,
}

/// Whose values they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Chart,
    Config,
}

/// What the values of one object are made of, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Content,
    Values,
    /// A key of a Secret, counted over all of them.
    Secret(usize),
}

/// k3s' own names, by which the files sort as they count.
pub(crate) fn file_name(layer: Layer, part: Part) -> String {
    let (layer, kind) = match layer {
        Layer::Chart => (0, "HelmChart"),
        Layer::Config => (1, "HelmChartConfig"),
    };
    match part {
        Part::Content => format!("values-{layer}-000-{kind}-ValuesContent.yaml"),
        Part::Values => format!("values-{layer}-001-{kind}-Values.yaml"),
        Part::Secret(index) => format!("values-{layer}-{:03}-{kind}-ValuesSecret.yaml", index + 2),
    }
}

/// `spec.set` as Helm's arguments: numbers, booleans and null by their type, anything else as text in which a comma is a comma.
pub(crate) fn set_arguments(set: &BTreeMap<String, IntOrString>) -> Vec<String> {
    let argument = |(key, value): (&String, &IntOrString)| match value {
        IntOrString::Int(number) => format!("--set={key}={number}"),
        IntOrString::String(text) if matches!(&*text.to_ascii_lowercase(), "true" | "false" | "null") => {
            format!("--set={key}={text}")
        }
        IntOrString::String(text) => format!("--set-string={key}={}", escape_commas(text)),
    };
    set.iter().map(argument).collect()
}

/// Each comma after an even number of backslashes gets one more: Helm splits at those.
fn escape_commas(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut backslashes = 0;
    for character in text.chars() {
        if character == ',' && backslashes % 2 == 0 {
            escaped.push('\\');
        }
        backslashes = if character == '\\' { backslashes + 1 } else { 0 };
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_win_and_sort_last() {
        let names = [
            file_name(Layer::Chart, Part::Content),
            file_name(Layer::Chart, Part::Values),
            file_name(Layer::Chart, Part::Secret(0)),
            file_name(Layer::Chart, Part::Secret(1)),
            file_name(Layer::Config, Part::Content),
            file_name(Layer::Config, Part::Values),
            file_name(Layer::Config, Part::Secret(0)),
        ];
        assert!(names.is_sorted());
        assert_eq!(names[2], "values-0-002-HelmChart-ValuesSecret.yaml");
        assert_eq!(names[4], "values-1-000-HelmChartConfig-ValuesContent.yaml");
    }

    #[test]
    fn set_has_types_and_escapes() {
        let text = |text: &str| IntOrString::String(text.into());
        let set = [
            ("a", IntOrString::Int(3)),
            ("b", text("true")),
            ("c", text("Null")),
            ("d", text("1.5")),
            ("e", text("x,y")),
            ("f", text(r"x\,y")),
            ("g", text(r"x\\,y")),
            ("h", text("")),
        ];
        let set = set.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        assert_eq!(
            set_arguments(&set),
            [
                "--set=a=3",
                "--set=b=true",
                "--set=c=Null",
                "--set-string=d=1.5",
                r"--set-string=e=x\,y",
                r"--set-string=f=x\,y",
                r"--set-string=g=x\\\,y",
                "--set-string=h=",
            ]
        );
    }
}
