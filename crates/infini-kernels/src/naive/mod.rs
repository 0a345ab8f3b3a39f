//! Plain f64 references: each states its equation, none is fast.

pub mod attention;
pub mod features;
pub mod knn;
pub mod pointwise;
pub mod tally;
