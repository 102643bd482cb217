//! Vocabulary of the tests: private servers, databases and subject spaces, given_* helpers, fakes.
