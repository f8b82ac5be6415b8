//! The values of a chart: files in the order in which later ones win.

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
}
