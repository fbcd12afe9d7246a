//! Typed constructors: one method of [`crate::Program`] a call, named and ordered as in the kernel.
//!
//! Arguments are whatever becomes an [`Arg`]: a number, a [`Ret`] of an earlier call, a
//! [`crate::Blob`]. Architectures differ in which calls exist; only
//! those that exist on all four are here. A machine that has one in a wider form gets that
//! ([`criu_arch::Calls`]): `fchown` is `fchown32` on 32-bit ARM.

mod event;
mod fs;
mod ipc;
mod mm;
mod net;
mod process;

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($($arg:ident),*);)*) => {
        impl crate::Program {
            $(
                $(#[$doc])*
                pub fn $name(&mut self, $($arg: impl Into<crate::Arg>),*) -> crate::Ret {
                    self.call(syscalls::Sysno::$name, [$($arg.into()),*])
                }
            )*
        }
    };
}
use calls;
