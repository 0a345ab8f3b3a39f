//! The parts of a decoder layer, as they stream.

pub(crate) mod attention;
pub(crate) mod matrix;
pub(crate) mod mlp;
pub(crate) mod own;
pub(crate) mod recall;
pub(crate) mod store;
pub(crate) mod tally;
