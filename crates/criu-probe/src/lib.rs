//! What the running kernel can do.
