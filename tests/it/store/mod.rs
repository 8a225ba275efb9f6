//! The contract of [`countersign::store::Store`], the same on both engines.
//!
//! To add a case: an `async fn` that takes a database, in the file of its subject, and its name in
//! the list below. A case is named after the rule it holds.

mod changes;
mod clients;
mod codes;
mod events;
mod factors;
mod families;
mod keys;
mod model;
mod nodes;
mod notices;
mod opening;
mod outage;
mod racing;
mod resources;
mod revocations;
mod rotations;
mod sample;
mod session_families;
mod sessions;
mod sign_in;
mod theft;
mod twins;
mod users;

use crate::support::database::{Database, Engine};

/// Makes each case a test on each engine, with a database of its own.
macro_rules! on_both_engines {
    ($($subject:ident { $($case:ident,)+ })+) => {
        on_both_engines!(@on_sqlite Sqlite $($($subject $case)+)+);
        on_both_engines!(@on_postgres Postgres $($($subject $case)+)+);
    };
    (@$module:ident $engine:ident $($subject:ident $case:ident)+) => {
        mod $module {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    $subject::$case(&Database::create(Engine::$engine).await).await;
                }
            )+
        }
    };
}

on_both_engines! {
    clients {
        a_client_is_read_back_as_it_was_put,
        clients_are_listed_by_id,
        creating_an_existing_client_conflicts_and_changes_nothing,
        a_stale_revision_conflicts_and_changes_nothing,
        each_change_adds_one_to_the_revision,
        of_32_concurrent_updates_one_wins,
        of_a_concurrent_update_and_deletion_one_wins,
        secrets_are_exchanged,
        deleting_a_client_removes_its_secrets_and_leaves_an_event,
    }
    resources {
        a_resource_is_read_back_as_it_was_created,
        a_resource_is_registered_once,
        a_deleted_resource_is_gone,
    }
    keys {
        a_key_schedule_is_read_back_as_it_was_put,
        a_key_schedule_of_another_revision_conflicts_and_changes_nothing,
        the_keys_of_each_use_have_a_schedule_of_their_own,
        no_key_is_sealed_under_a_master_key_that_was_given_up,
        of_a_promotion_and_a_new_key_that_meet_one_waits_for_the_other,
        of_32_concurrent_first_schedules_one_wins,
        a_revoked_key_is_published_once,
        the_activation_of_a_key_can_be_moved,
        two_keys_cannot_become_active_at_once,
    }
    changes {
        changes_are_numbered_in_commit_order_without_gaps,
        changes_come_in_order_and_no_more_than_asked_for,
        another_epoch_is_reported,
        lost_changes_begin_one_new_epoch,
        a_snapshot_is_of_one_moment,
        a_commit_wakes_whoever_waits_for_changes,
    }
    events {
        every_change_leaves_an_event_with_its_cause,
        an_event_shows_what_was_before_and_after,
        events_hold_no_secret_and_no_hash,
        a_failed_change_leaves_nothing,
        events_are_read_in_the_order_of_commits,
    }
    revocations {
        a_revoked_token_has_an_entry_until_it_is_dead,
        the_tokens_of_a_client_are_revoked_by_one_entry,
        a_client_revokes_no_more_tokens_one_by_one_than_are_remembered,
        a_disabled_client_has_its_tokens_revoked_without_a_bound,
        a_removed_client_leaves_an_entry_that_its_successor_does_not_inherit,
        a_restored_database_has_a_new_epoch_and_no_old_token,
        an_assertion_is_used_once_by_whomever,
        what_is_over_is_swept_in_batches_and_nothing_else,
    }
    users {
        a_user_is_read_back_as_it_was_put,
        users_are_listed_by_id_in_parts,
        a_name_belongs_to_one_user_however_it_is_written,
        of_32_concurrent_users_of_one_name_one_is_created,
        a_stale_revision_of_a_user_conflicts_and_changes_nothing,
        each_change_of_a_user_adds_one_to_the_revision,
        of_a_concurrent_update_and_deletion_of_a_user_one_wins,
        ending_the_sessions_of_a_user_draws_an_epoch_and_writes_one_entry,
        a_disabled_user_has_every_token_revoked_until_it_is_enabled,
        a_removed_user_leaves_an_entry_until_its_tokens_are_dead,
        events_about_users_hold_no_hash,
        a_user_row_that_cannot_be_read_is_named,
        a_demo_user_is_found_by_whatever_name,
    }
    factors {
        factors_are_read_back_as_they_were_added,
        what_cannot_be_added_or_removed_conflicts_and_changes_nothing,
        of_32_who_present_a_one_time_password_at_once_one_has_it,
        of_32_who_enrol_a_first_factor_at_once_one_does,
        of_32_who_present_a_recovery_code_at_once_one_uses_it,
        new_recovery_codes_replace_all_that_there_were,
        of_32_uses_of_a_passkey_with_one_count_one_is_noted,
        recovery_codes_go_with_the_last_factor,
        the_last_factor_of_a_user_who_needs_one_stays,
        what_a_user_has_goes_with_it_or_by_a_reset,
        sealed_factors_are_counted_and_sealed_anew_once,
        every_change_of_factors_leaves_its_event_and_no_secret,
    }
    session_families {
        of_32_who_ask_at_once_all_get_the_same_family,
        a_family_of_a_session_is_what_the_session_is,
        a_family_of_a_session_has_no_refresh_tokens,
        a_family_of_a_session_ends_with_it,
        a_session_that_is_over_gets_nothing,
        what_was_ended_by_itself_stays_so_until_the_user_authenticates_again,
        a_client_whose_sessions_were_ended_has_another_family,
        codes_bring_a_session_one_family_and_none_that_was_ended,
    }
    notices {
        the_end_of_a_sign_in_is_to_be_told,
        who_does_not_want_to_be_told_is_not,
        what_somebody_has_taken_on_nobody_else_does,
        no_client_waits_until_another_is_told_all,
        however_many_sign_ins_there_are_they_end_in_time,
        the_end_by_theft_is_to_be_told,
        what_was_over_before_is_not_told_again,
        what_nobody_answers_to_is_dropped_at_once,
        what_one_notice_waits_for_no_other_does,
    }
    sessions {
        a_session_is_read_back_as_it_was_put,
        the_end_of_a_session_ends_what_was_not_to_outlast_it,
        a_family_of_a_session_that_has_ended_is_dead,
        a_code_redeemed_beside_the_end_of_its_session_leaves_nothing,
        a_consent_is_replaced_and_withdrawn,
        nothing_is_kept_of_what_a_removed_user_had_allowed,
        sessions_are_swept_when_they_expired_long_ago,
        a_restored_database_has_no_living_session_unless_told_otherwise,
        a_session_shows_what_has_become_of_its_user,
    }
    families {
        families_are_listed_the_latest_first_by_user_and_client,
        a_list_of_families_goes_on_where_it_ended,
        families_that_have_ended_are_left_out_on_demand,
        a_family_shows_what_has_become_of_its_client_and_user,
        codes_and_unfinished_sign_ins_are_swept_when_they_are_over,
        families_are_swept_when_they_expired_long_ago,
        the_walk_deletes_what_has_ended_long_ago_and_nothing_else,
        a_family_refreshed_beside_the_walk_is_not_lost,
        a_family_that_is_locked_is_left_to_the_next_walk,
        thousands_of_families_of_a_user_end_by_one_update,
        a_restored_database_has_no_living_family_unless_told_otherwise,
    }
    rotations {
        a_family_is_read_back_as_it_was_opened,
        a_rotation_moves_the_counter_and_what_goes_with_it,
        the_token_before_gets_the_same_successor_within_the_window,
        a_clock_that_is_set_moves_no_end_and_widens_no_window_beyond_that,
        a_token_spent_long_ago_ends_its_family,
        a_family_ends_to_the_millisecond,
        the_cases_are_judged_in_their_order,
        what_was_signed_in_with_one_factor_rests_while_two_are_wanted,
        whoever_is_no_party_to_a_family_changes_nothing,
        a_request_may_narrow_a_grant_and_never_widen_it,
        what_cannot_be_answered_spends_no_token,
        without_rotation_the_same_token_goes_on,
        a_reuse_is_published_with_both_parties,
        a_client_ends_a_family_by_any_of_its_tokens,
        an_operator_ends_a_family_once,
        user_and_client_are_looked_at_with_every_use,
        every_sign_in_at_a_client_ends_by_one_change,
        a_database_that_has_lost_commits_goes_on_from_the_token,
        a_token_of_a_key_older_than_the_familys_is_unknown,
        a_replay_is_noted_once_and_no_more_than_there_is_room_for,
        a_family_takes_no_more_room_however_often_it_is_used,
        of_a_user_agent_only_the_beginning_is_kept,
        a_family_that_occurs_twice_is_judged_twice,
        each_event_of_a_batch_has_the_place_of_its_entry,
        a_batch_without_an_end_leaves_the_order_of_changes_alone,
        the_end_of_a_family_wakes_whoever_waits_for_changes,
        a_family_that_cannot_be_read_is_refused_alone,
        a_rotation_that_fails_half_way_leaves_everything_as_it_was,
        a_refresh_needs_nothing_but_its_own_row,
    }
    theft {
        a_stolen_token_comes_to_what_the_threat_model_tells,
        a_leapfrogging_thief_is_found_out_at_the_end_of_the_window,
        a_window_is_not_kept_open_by_whoever_stays_in_it,
    }
    racing {
        of_64_who_present_a_token_at_once_one_rotates_it,
        batches_and_mass_ends_at_once_disturb_nobody,
        no_refresh_that_begins_after_the_end_of_a_family_succeeds,
        nothing_comes_of_a_consent_that_was_taken_back,
        a_sign_in_beside_the_end_of_sessions_leaves_nothing_living,
        a_refresh_judged_before_the_end_of_sessions_is_covered_by_it,
        a_revocation_that_had_to_wait_covers_what_was_issued_meanwhile,
        whoever_holds_families_holds_up_nobody_else,
        whoever_presents_codes_holds_up_no_end_of_sessions,
        two_who_sweep_at_once_delete_what_is_over_and_nothing_that_lives,
    }
    model {
        every_history_goes_as_the_reference_has_it,
        a_batch_comes_to_the_same_as_its_members_one_by_one,
    }
    codes {
        a_code_is_exchanged_for_a_family_once,
        a_family_lives_no_longer_than_the_shorter_of_its_lives,
        a_code_is_not_stored_for_what_is_over,
        a_code_is_exchanged_only_by_whom_it_is_for,
        what_a_code_was_stored_without_is_not_to_be_presented,
        the_cases_of_a_code_are_judged_in_their_order,
        what_a_code_stands_for_is_looked_at_again_when_it_is_exchanged,
        a_code_used_again_ends_what_it_was_exchanged_for,
        a_code_used_again_after_its_family_is_gone_changes_nothing,
        of_50_who_exchange_a_code_at_once_one_gets_a_family_that_is_over,
        an_exchange_that_fails_half_way_leaves_everything_as_it_was,
        an_unfinished_sign_in_is_taken_once,
        an_unfinished_sign_in_is_left_to_its_client_until_it_is_over,
    }
    nodes {
        a_node_is_listed_by_its_last_sign_of_life,
        a_forgotten_node_is_gone,
        a_node_that_was_silent_for_a_day_is_forgotten,
    }
    opening {
        a_reopened_store_holds_everything,
        a_new_database_can_be_opened_by_eight_at_once,
        a_newer_schema_is_refused,
        an_older_schema_is_brought_up_to_date_by_migrating_and_serving_only,
        whoever_only_looks_makes_no_schema,
        a_migration_that_was_altered_is_refused,
        a_value_that_cannot_be_is_named,
        what_cannot_be_read_is_left_out_of_a_snapshot,
        a_database_once_for_production_stays_so,
        what_the_database_refuses_is_no_outage,
        a_store_goes_on_with_new_connections,
        the_time_is_that_of_the_database,
        a_store_closes_also_when_nobody_waits_for_changes_any_more,
    }
}
