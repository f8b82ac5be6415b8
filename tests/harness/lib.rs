//! Real nodes as namespaces.
