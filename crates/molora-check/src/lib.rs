//! The cases, the subjects and the judge that the tests, the benches and `molora verify` share.
