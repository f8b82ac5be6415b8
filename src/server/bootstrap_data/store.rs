//! Bootstrap data in the datastore.

use k3s_datastore::{Client, ClientError, Revision, Stored};
use k3s_identity::Password;
use k3s_supervisor_api::BootstrapData;
use tracing::info;

use super::{
    BootstrapError,
    seal::{self, PREFIX, open, seal, storage_key},
};

/// What the datastore holds for this token.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) data: BootstrapData,
    /// Where it lies, and since which revision.
    key: String,
    modified: Revision,
    /// Keys that were written before and that a rotation of the token would have removed.
    superseded: Vec<(String, Revision)>,
}

/// Loads what is sealed by `password`; `None` if the datastore is a new one.
///
/// `written_as` are other texts that older releases of k3s sealed by: the whole token instead of its password. They also
/// sealed by nothing at all where no token was given.
pub(crate) async fn load(
    client: &Client,
    password: Option<&Password>,
    written_as: Option<&str>,
) -> Result<Option<Found>, BootstrapError> {
    find(&client.list(PREFIX).await?, password, written_as)
}

/// The same among keys that are at hand.
pub(crate) fn find(
    stored: &[Stored],
    password: Option<&Password>,
    written_as: Option<&str>,
) -> Result<Option<Found>, BootstrapError> {
    // A server that was stopped in its first moments leaves a key without a value.
    let stored: Vec<_> = stored.iter().filter(|stored| !stored.value.is_empty()).collect();
    if stored.is_empty() {
        return Ok(None);
    }
    let secrets = password.map(Password::expose).into_iter().chain(written_as).chain([""]);
    for secret in secrets {
        let key = storage_key(secret);
        let Some(fitting) = stored.iter().find(|stored| stored.key == key.as_bytes()) else { continue };
        let data = open(secret, &fitting.value).and_then(|json| BootstrapData::parse(&json));
        let data = data.map_err(|why| BootstrapError::Damaged { key: key.clone(), why })?;
        let older = stored.iter().filter(|stored| stored.modified < fitting.modified);
        let superseded = older.map(|stored| (name(stored), stored.modified)).collect();
        return Ok(Some(Found { data, key, modified: fitting.modified, superseded }));
    }
    let sealed_by = hashes(stored.iter().copied());
    Err(if password.is_some() {
        BootstrapError::OtherToken { sealed_by }
    } else {
        BootstrapError::NoToken { sealed_by }
    })
}

/// Stores `data`, sealed by `password`, unless the datastore holds the same. What was found under a key of older releases
/// moves to today's, and what a rotation of the token left behind when the power was cut goes.
///
/// # Errors
/// [`ClientError::Changed`] if somebody else has stored something since it was `found`; nothing is changed then.
pub(crate) async fn save(
    client: &Client,
    password: &Password,
    data: BootstrapData,
    found: Option<Found>,
) -> Result<(), BootstrapError> {
    let key = storage_key(password.expose());
    let data = completed(data, found.as_ref());
    match &found {
        Some(found) if found.key == key && found.data.same_contents(&data) => {}
        Some(found) if found.key == key => {
            client.update(&key, seal(password.expose(), &data.to_json())?, found.modified).await?;
            tell_stored(password);
        }
        found => {
            let existing = if found.is_some() { Existing::Replaced } else { Existing::Stays };
            write(client, password, &data, existing).await?;
        }
    }
    let Some(found) = found else { return Ok(()) };
    if found.key != key {
        client.delete(&found.key, found.modified).await?;
        info!(from = found.key, to = key, "Moved the bootstrap data of an older release.");
    }
    for (key, modified) in &found.superseded {
        client.delete(key, *modified).await?;
        info!(key, "Removed bootstrap data that an earlier token sealed.");
    }
    Ok(())
}

/// Stores `data`, sealed by `password`, and leaves what was `found` under another token's key there.
pub(crate) async fn save_beside(
    client: &Client,
    password: &Password,
    data: BootstrapData,
    found: Option<Found>,
) -> Result<(), BootstrapError> {
    write(client, password, &completed(data, found.as_ref()), Existing::Replaced).await
}

/// Removes what other tokens than `password` sealed.
pub(crate) async fn keep_only(client: &Client, password: &Password) -> Result<(), ClientError> {
    let key = storage_key(password.expose());
    for stored in client.list(PREFIX).await? {
        let other = name(&stored);
        if other == key {
            continue;
        }
        match client.delete(&other, stored.modified).await {
            // Somebody else has removed it.
            Err(ClientError::Changed(_)) if client.get(&other).await?.is_none() => {}
            deleted => deleted?,
        }
    }
    Ok(())
}

/// What the cluster goes by from the next start on: what is stored, and of what is not stored yet what is on the disk.
pub(crate) fn stored_or(on_disk: &BootstrapData, found: Option<&Found>) -> BootstrapData {
    let mut data = found.map(|found| found.data.clone()).unwrap_or_default();
    data.complete_by(on_disk);
    data
}

/// Files of another release, or ones that are not on this disk, stay stored.
fn completed(mut data: BootstrapData, found: Option<&Found>) -> BootstrapData {
    if let Some(found) = found {
        data.complete_by(&found.data);
    }
    data
}

/// What becomes of data that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    /// It is another server's, and stays.
    Stays,
    /// It is what was found, and is replaced.
    Replaced,
}

async fn write(
    client: &Client,
    password: &Password,
    data: &BootstrapData,
    existing: Existing,
) -> Result<(), BootstrapError> {
    let key = storage_key(password.expose());
    let sealed = seal(password.expose(), &data.to_json())?;
    match client.get(&key).await? {
        Some(before) if existing == Existing::Stays && !before.value.is_empty() => {
            return Err(BootstrapError::SetUpElsewhere);
        }
        Some(before) => client.update(&key, sealed, before.modified).await?,
        None => client.create(&key, sealed).await?,
    };
    tell_stored(password);
    Ok(())
}

fn tell_stored(password: &Password) {
    let token_hash = seal::token_hash(password.expose());
    info!(token_hash, "Stored the cluster's authorities in the datastore, sealed by its token.");
}

/// What tells the tokens apart that sealed these keys.
pub(super) fn hashes<'a>(stored: impl IntoIterator<Item = &'a Stored>) -> Vec<String> {
    stored.into_iter().map(|stored| name(stored).trim_start_matches(PREFIX).to_owned()).collect()
}

fn name(stored: &Stored) -> String {
    String::from_utf8_lossy(&stored.key).into_owned()
}

#[cfg(test)]
mod tests {
    use k3s_datastore::{Datastore, Options};
    use k3s_supervisor_api::File;
    use tempfile::TempDir;

    use super::{super::seal::tests::BARE_SEALED_BY_NOTHING, *};

    async fn datastore() -> (TempDir, Datastore) {
        let directory = tempfile::tempdir().unwrap();
        let datastore = Datastore::open(Options::new(directory.path().join("state.db"))).await.unwrap();
        (directory, datastore)
    }

    fn data(content: &str) -> BootstrapData {
        let file = File { modified: "2026-01-02T03:04:05Z".parse().unwrap(), content: content.into() };
        BootstrapData { files: [("ServerCA".to_owned(), file)].into() }
    }

    #[tokio::test]
    async fn it_is_stored_once_and_again_when_it_changes() {
        let (_directory, datastore) = datastore().await;
        let (client, token) = (datastore.client(), Password::new("s3cret"));
        let load = async || load(&client, Some(&token), None).await.unwrap();
        assert!(load().await.is_none());
        save(&client, &token, data("one"), None).await.unwrap();
        let revision = datastore.status().revision;
        save(&client, &token, data("one"), load().await).await.unwrap();
        assert_eq!(datastore.status().revision, revision);
        save(&client, &token, data("two"), load().await).await.unwrap();
        assert_eq!(load().await.unwrap().data, data("two"));
        // What only the datastore has is kept.
        save(&client, &token, BootstrapData::default(), load().await).await.unwrap();
        assert_eq!(load().await.unwrap().data, data("two"));
        datastore.close().await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_written_over_what_somebody_else_has_stored_meanwhile() {
        let (_directory, datastore) = datastore().await;
        let (client, token) = (datastore.client(), Password::new("s3cret"));
        let load = async || load(&client, Some(&token), None).await.unwrap();
        save(&client, &token, data("one"), None).await.unwrap();
        let found = load().await;
        save(&client, &token, data("two"), load().await).await.unwrap();
        let late = save(&client, &token, data("three"), found).await;
        assert!(matches!(late, Err(BootstrapError::Datastore(ClientError::Changed(_)))), "{late:?}");
        assert_eq!(load().await.unwrap().data, data("two"));
        datastore.close().await.unwrap();
    }

    #[tokio::test]
    async fn another_token_is_refused_and_told_which_it_was() {
        let (_directory, datastore) = datastore().await;
        let client = datastore.client();
        save(&client, &Password::new("s3cret"), data("one"), None).await.unwrap();
        let refused = load(&client, Some(&Password::new("other")), None).await.unwrap_err().to_string();
        assert!(refused.contains("encrypted with different token") && refused.ends_with("1ec1c26b50d5"), "{refused}");
        assert!(matches!(load(&client, None, None).await, Err(BootstrapError::NoToken { .. })));
        let before = client.get("/bootstrap/1ec1c26b50d5").await.unwrap().unwrap();
        client.update("/bootstrap/1ec1c26b50d5", "salt:AAAA", before.modified).await.unwrap();
        let damaged = load(&client, Some(&Password::new("s3cret")), None).await;
        assert!(matches!(damaged, Err(BootstrapError::Damaged { .. })), "{damaged:?}");
        datastore.close().await.unwrap();
    }

    #[tokio::test]
    async fn keys_of_older_releases_move() {
        let token = Password::new("s3cret");
        let whole = "K10abc::server:s3cret";
        let sealed =
            [("", BARE_SEALED_BY_NOTHING.to_owned()), (whole, seal(whole, &data("server ca\n").to_json()).unwrap())];
        for (secret, sealed) in sealed {
            let (_directory, datastore) = datastore().await;
            let client = datastore.client();
            client.create(&storage_key(secret), sealed).await.unwrap();
            let found = load(&client, Some(&token), Some(whole)).await.unwrap();
            assert!(found.is_some(), "{secret}");
            save(&client, &token, BootstrapData::default(), found).await.unwrap();
            let keys: Vec<_> = client.list(PREFIX).await.unwrap().into_iter().map(|stored| stored.key).collect();
            assert_eq!(keys, [storage_key("s3cret")]);
            assert!(load(&client, Some(&token), None).await.unwrap().unwrap().data.same_contents(&data("server ca\n")));
            datastore.close().await.unwrap();
        }
    }
}
