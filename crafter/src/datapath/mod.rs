//! The only place that touches the kernel.
