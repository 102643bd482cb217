//! Policy `replace`: all at once, or a few at a time.

use super::*;

const SIX_OLD: &str = "ready@70 ready@71 ready@72 ready@73 ready@74 ready@75";

fn eight() -> Pool {
    pool(8).ttl_minutes(60).of(SIX_OLD).of("ready@1 ready@2")
}

#[test]
fn gradual_replacement_takes_a_share_of_the_desired_count_at_a_time() {
    check([
        (
            "a quarter, the oldest first",
            eight().gradual(25),
            "delete 6 expired, delete 5 expired, create 2",
            "expired gradual below_desired",
            Some(58),
        ),
        (
            "as much as the policy says",
            eight().gradual(50),
            "delete 6 expired, delete 5 expired, delete 4 expired, delete 3 expired, create 4",
            "expired gradual below_desired",
            Some(58),
        ),
        (
            "one less for each that is not ready yet",
            pool(8).ttl_minutes(60).gradual(25).of(SIX_OLD).of("ready@1 unready@1"),
            "delete 6 expired, create 1",
            "expired gradual below_desired",
            Some(59),
        ),
        (
            "or starts",
            pool(8).ttl_minutes(60).gradual(25).of(SIX_OLD).of("starting@1 starting@1"),
            "",
            "expired gradual",
            NEVER,
        ),
        (
            "or is being deleted",
            pool(8).ttl_minutes(60).gradual(25).of(SIX_OLD).of("ready@1 ready@1 deleting@99"),
            "delete 6 expired, create 1",
            "expired gradual below_desired",
            Some(59),
        ),
        (
            "those beyond the desired count go without replacement",
            eight().gradual(25).of("starting@1 starting@1"),
            "delete 6 expired, delete 5 expired",
            "expired gradual",
            Some(58),
        ),
    ]);
}

#[test]
fn gradual_replacement_keeps_the_pool_as_full_as_it_was() {
    check([
        (
            "at least one",
            pool(2).ttl_minutes(60).gradual(1).of("ready@70 ready@80"),
            "delete 2 expired, create 1",
            "expired gradual below_desired",
            NEVER,
        ),
        (
            "what is missing besides is created as well",
            pool(4).ttl_minutes(60).gradual(25).of("ready@70 ready@80"),
            "delete 2 expired, create 3",
            "expired gradual below_desired",
            NEVER,
        ),
        (
            "invalidated ones likewise",
            pool(4).invalidated(0).gradual(50).of("ready@1 ready@2 ready@3 ready@4"),
            "delete 4 expired, delete 3 expired, create 2",
            "expired gradual below_desired",
            NEVER,
        ),
        (
            "a preset that is not active keeps none",
            pool(2)
                .standing(Standing::Inactive)
                .ttl_minutes(60)
                .gradual(25)
                .of("ready@70 ready@80"),
            "delete 2 expired, delete 1 expired",
            "inactive",
            NEVER,
        ),
        (
            "at once: all of them",
            eight().gradual(25).set(|it| it.policy.pool.replace = Replace::AtOnce),
            "delete 6 expired, delete 5 expired, delete 4 expired, delete 3 expired, \
             delete 2 expired, delete 1 expired, create 6",
            "expired below_desired",
            Some(58),
        ),
    ]);
}
