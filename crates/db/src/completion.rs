//! What the end of a workspace build changes: all of it in the caller's one transaction.

mod effect;
mod insert;

pub use effect::{
    Charge, Facts, carry_costs, count_claim_builds, count_replaced, mark_attempts, mark_pools,
    mark_workspaces, note_refused_cost, quota, replace_claim, revoke_keys, set_cost,
};
pub use insert::{NewAgent, NewApp, NewResource, NewScript, Owner, Place, Settled};
pub use insert::{insert_agents, insert_apps, insert_resources, insert_scripts, settle};
