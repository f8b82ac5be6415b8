//! What an object is called.

use std::fmt;

/// The name of an object in a namespace. Sorted by namespace, so that those of one lie together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: String,
    /// The name in it.
    pub name: String,
}

impl ObjectKey {
    /// The object called `name` in `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Comes before every object of `namespace`, whose names are not empty.
    pub(crate) fn first_in(namespace: &str) -> Self {
        Self::new(namespace, "")
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
