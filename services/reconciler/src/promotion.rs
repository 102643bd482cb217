//! What a pass means to promotions: the end of warm ones. (Pools of two versions that stand in for
//! each other are marked by [`berth_db::pool::record`].)

use berth_backbone::{Backbone, promotion};
use berth_db::DbError;
use berth_db::pool::{self, LockedPool};
use berth_db::promotion::list_open;
use berth_domain::plan::Standing;

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
