//! The agent from outside: real scripts, real processes, and an API that can go away.

#[cfg(test)]
mod hardship;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod life;
#[cfg(test)]
mod local;
#[cfg(test)]
mod support;
