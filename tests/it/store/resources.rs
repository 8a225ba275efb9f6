//! Protected resources.

use countersign::domain::{change::Change, resource::Resource};

use super::sample::{apply, assert_conflict, resource};
use crate::support::database::Database;

pub(super) async fn a_resource_is_read_back_as_it_was_created(database: &Database) {
    let store = database.open().await;
    let mut resources = [resource(1), resource(2)];
    resources[1].introspection_clients.clear();
    resources[1].demo = false;
    for resource in &resources {
        let change = Change::CreateResource(resource.clone());
        assert_eq!(apply(&*store, change).await.unwrap().revision, 1);
    }
    assert_eq!(store.resources().await.unwrap(), resources);
    assert_eq!(store.snapshot().await.unwrap().resources, resources);
}

pub(super) async fn a_resource_is_registered_once(database: &Database) {
    let store = database.open().await;
    apply(&*store, Change::CreateResource(resource(1)))
        .await
        .unwrap();
    let same_id = Resource {
        id: resource(1).id,
        ..resource(2)
    };
    let same_identifier = Resource {
        resource: resource(1).resource,
        ..resource(2)
    };
    for duplicate in [same_id, same_identifier] {
        assert_conflict(database, &*store, Change::CreateResource(duplicate)).await;
    }
    assert_eq!(store.resources().await.unwrap(), [resource(1)]);
}

pub(super) async fn a_deleted_resource_is_gone(database: &Database) {
    let store = database.open().await;
    for number in [1, 2] {
        let change = Change::CreateResource(resource(number));
        apply(&*store, change).await.unwrap();
    }
    let deletion = Change::DeleteResource(resource(1).id);
    apply(&*store, deletion.clone()).await.unwrap();
    assert_eq!(store.resources().await.unwrap(), [resource(2)]);
    assert_conflict(database, &*store, deletion).await;
}
