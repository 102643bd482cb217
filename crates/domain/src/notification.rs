//! The kinds of notification (70-notifications) and their ids, which clients know.

use uuid::Uuid;

use crate::id::NotificationTemplateId;

#[cfg(test)]
mod tests;

closed_set! {
    /// A kind of notification. The spelling is the last token of its subject,
    /// `berth.notify.<template>`.
    NotificationTemplate {
        /// A preset's breaker opened.
        PrebuildFailureLimit = "prebuild_failure_limit",
        /// A preset's breaker closed again. Ours.
        PrebuildsRecovered = "prebuilds_recovered",
        /// A claim replaced resources, or a rehearsal shows that it would.
        ResourceReplaced = "resource_replaced",
        /// The builder refused a preset's input for good. Ours.
        PresetInvalid = "preset_invalid",
        /// Claims missed because a pool was empty for too long. Ours.
        PoolEmpty = "pool_empty",
        /// A warm promotion was called off. Ours.
        PromotionCalledOff = "promotion_called_off",
        /// A workspace was created.
        WorkspaceCreated = "workspace_created",
        /// A workspace was deleted.
        WorkspaceDeleted = "workspace_deleted",
        /// A workspace was updated by hand.
        WorkspaceManuallyUpdated = "workspace_manually_updated",
        /// A build by schedule failed.
        WorkspaceAutobuildFailed = "workspace_autobuild_failed",
        /// A build that a person asked for failed. Never sent for prebuilds.
        WorkspaceManualBuildFailed = "workspace_manual_build_failed",
        /// A workspace became dormant.
        WorkspaceDormant = "workspace_dormant",
        /// A workspace will be deleted.
        WorkspaceMarkedForDeletion = "workspace_marked_for_deletion",
        /// A workspace stops soon.
        WorkspaceAutostopReminder = "workspace_autostop_reminder",
        /// A workspace was updated by schedule.
        WorkspaceAutoUpdated = "workspace_auto_updated",
        /// A template was deleted.
        TemplateDeleted = "template_deleted",
        /// A template was deprecated.
        TemplateDeprecated = "template_deprecated",
        /// The report of failed builds.
        BuildsFailedReport = "builds_failed_report",
        /// Sent by hand to see whether sending works.
        Test = "test",
    }
}

impl NotificationTemplate {
    /// The id that the REST contract and stored preferences use.
    #[must_use]
    pub const fn id(self) -> NotificationTemplateId {
        NotificationTemplateId(Uuid::from_u128(match self {
            Self::PrebuildFailureLimit => 0x414d_9331_c1fc_4761_b40c_d1f4_7022_79eb,
            Self::PrebuildsRecovered => 0x7c1e_5a0b_3d92_4f6e_9a57_e0c4_81b2_6d33,
            Self::ResourceReplaced => 0x89d9_745a_816e_4695_a17f_3d0a_229e_2b8d,
            Self::PresetInvalid => 0x2f84_c6d1_90be_4a35_8e1d_57b3_0a9c_f412,
            Self::PoolEmpty => 0xd35b_09e7_46a8_4c1f_b270_9fe8_135d_7ca6,
            Self::PromotionCalledOff => 0x5e9b_3c74_a1d8_4b06_93f2_0c6d_e857_41ab,
            Self::WorkspaceCreated => 0x281f_df73_c6d6_4cbb_8ff5_888b_af8a_2fff,
            Self::WorkspaceDeleted => 0xf517_da0b_cdc9_410f_ab89_a861_07c4_20ed,
            Self::WorkspaceManuallyUpdated => 0xd089_fe7b_d5c5_4c0c_aaf5_6898_59f7_d392,
            Self::WorkspaceAutobuildFailed => 0x381d_f2a9_c0c0_4749_420f_80a9_280c_66f9,
            Self::WorkspaceManualBuildFailed => 0x2fae_ee0f_26cb_4e96_821c_85cc_b9f7_1513,
            Self::WorkspaceDormant => 0x0ea6_9165_ec14_4314_91f1_6956_6ac3_c5a0,
            Self::WorkspaceMarkedForDeletion => 0x51ce_2fdf_c9ca_4be1_8d70_6286_74f9_bc42,
            Self::WorkspaceAutostopReminder => 0x6f6c_b984_c167_4fa5_bb87_1058_dd64_2779,
            Self::WorkspaceAutoUpdated => 0xc34a_0c09_0704_4cac_bd1c_0c01_4681_1c2b,
            Self::TemplateDeleted => 0x29a0_9665_2a4c_403f_9648_5430_1670_e7be,
            Self::TemplateDeprecated => 0xf40f_ae84_55a2_42cd_99fa_b41c_1ca6_4894,
            Self::BuildsFailedReport => 0x34a2_0db2_e9cc_4a93_b0e4_8569_699d_7a00,
            Self::Test => 0xc425_f63e_716a_4bf4_ae24_7834_8f70_6c3f,
        }))
    }

    /// The kind with this id, if there is one.
    #[must_use]
    pub fn find(id: NotificationTemplateId) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.id() == id)
    }

    /// Whether it goes to the template admins of the organization rather than to one person.
    #[must_use]
    pub const fn is_for_template_admins(self) -> bool {
        matches!(
            self,
            Self::PrebuildFailureLimit
                | Self::PrebuildsRecovered
                | Self::ResourceReplaced
                | Self::PresetInvalid
                | Self::PoolEmpty
                | Self::PromotionCalledOff
                | Self::TemplateDeleted
                | Self::BuildsFailedReport
        )
    }
}
