//! PTX text to a [`Module`], decoded once to enums.
