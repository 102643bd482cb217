//! Every SQL statement of Berth: one module per entity, one function per statement.
