//! What a pass means to promotions: pools of two versions that stand in for each other, and the end
//! of warm promotions.

use berth_backbone::{Backbone, Work, promotion};
use berth_bus::event::Wake;
use berth_db::DbError;
use berth_db::pool::{self, LockedPool, Look};
use berth_db::promotion::{list_open, mark_neighbours};
use berth_domain::plan::{Plan, Standing};

/// Has the pool looked at that stands in for this one, or that this one stands in for, in the
/// transaction of the pass. A new version's pool tells the old one's how many it has; the old one's
/// tells when it has fewer. An old pool that did nothing says nothing, so this comes to an end.
pub(crate) async fn tell_neighbours(
    work: &mut Work,
    look: &Look,
    plan: &Plan,
) -> Result<(), DbError> {
    let observed = &look.observed;
    let is_news = match observed.pool.config.standing {
        Standing::Active => observed.snapshot.predecessor > 0,
        Standing::Previous => !plan.actions.is_empty() || look.claims > 0,
        Standing::Candidate | Standing::Inactive => false,
    };
    if is_news {
        let now = work.now();
        let preset = observed.pool.config.preset_id;
        for neighbour in mark_neighbours(work.conn(), preset, now).await? {
            work.emit(Wake::pool(neighbour));
        }
    }
    Ok(())
}

/// Looks, after the commit of a candidate's pass, whether its promotion is to end.
pub(crate) async fn look_after(backbone: &Backbone, pool: &LockedPool) -> Result<(), DbError> {
    let Some(template) = pool.template_id.filter(|_| pool.config.standing == Standing::Candidate)
    else {
        return Ok(());
    };
    if let Err(error) = promotion::look(backbone, template).await {
        // The pass took the mark away; another one comes.
        let preset = [pool.config.preset_id];
        pool::mark_dirty(&backbone.db, &preset, backbone.clock.now()).await?;
        return Err(error);
    }
    Ok(())
}

/// Looks at every open promotion: whoever died between a pass and its look left one. With none, this
/// is one statement over an empty index.
pub(crate) async fn sweep(backbone: &Backbone) -> Result<(), DbError> {
    for template in list_open(&backbone.db).await? {
        // One promotion's error never stops another's.
        if let Err(error) = promotion::look(backbone, template).await {
            tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), template.id = %template, "promotion not looked at");
        }
    }
    Ok(())
}
