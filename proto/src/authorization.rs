//! Who may call what: one deny-by-default table of role × RPC, and the layer that enforces it.
//! Proof of who somebody is lives in `tls`; what a handler does with an allowed call, in the services.

use std::fmt;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Request, Response};
use tokio_util::either::Either;
use tonic::Status;
use tower::{Layer, Service};
use tracing::warn;

use crate::identity::{Role, SpiffeId};
use crate::lines::LineBudget;
use crate::tls::Peer;

/// Who may call a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Callers {
    /// These roles.
    Roles(&'static [Role]),
    /// These roles; on a plaintext loopback listener also callers without a certificate.
    RolesOrLocal(&'static [Role]),
    /// Only callers without a certificate: they are about to get one.
    Anonymous,
}

use Callers::{Anonymous, Roles, RolesOrLocal};
use Role::{Client, Node, Operator};

/// Every RPC of every service. What is not here is refused.
const TABLE: &[(&str, Callers, &[&str])] = &[
    ("fedge.enrolment.v1.Enrolment", Anonymous, &["Enrol", "Renew"]),
    (
        "fedge.federation.v1.Federation",
        Roles(&[Node]),
        &["Hello", "Poll", "Heartbeat", "Download", "FindUpload", "Upload", "ReportEvaluation", "Decline"],
    ),
    (
        "fedge.operators.v1.Operators",
        Roles(&[Operator]),
        &[
            "PublishModel",
            "ListModels",
            "DownloadModel",
            "CreateTask",
            "ListTasks",
            "ShowTask",
            "WatchTask",
            "PauseTask",
            "ResumeTask",
            "CancelTask",
            "ListNodes",
        ],
    ),
    (
        "inference.GRPCInferenceService",
        RolesOrLocal(&[Operator, Client]),
        &[
            "ServerLive",
            "ServerReady",
            "ModelReady",
            "ServerMetadata",
            "ModelMetadata",
            "ModelInfer",
            "ModelStreamInfer",
            "ModelConfig",
            "ModelStatistics",
            "RepositoryIndex",
        ],
    ),
    ("inference.GRPCInferenceService", RolesOrLocal(&[Operator]), &["RepositoryModelLoad", "RepositoryModelUnload"]),
    ("grpc.health.v1.Health", RolesOrLocal(&[Operator, Client, Node]), &["Check", "Watch"]),
    ("grpc.reflection.v1.ServerReflection", RolesOrLocal(&[Operator, Client]), &["ServerReflectionInfo"]),
    ("fedge.feedback.v1.Feedback", RolesOrLocal(&[Operator, Client]), &["Label", "Add"]),
];

/// What a listener grants to callers without a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnonymousCallers {
    /// Enrolment alone: for every TLS listener.
    EnrolmentOnly,
    /// Inference and feedback too: only for a plaintext listener on loopback.
    LocalInference,
}

/// Lines about refused callers; `silent` in each: how many had none since the last one.
static REFUSED: LineBudget = LineBudget::new(50);

/// Says whether an identity, or the certificate with this SHA-256, was revoked.
pub type Revoked = dyn Fn(&SpiffeId, &[u8; 32]) -> bool + Send + Sync;

/// May this caller call this RPC?
///
/// # Errors
/// `UNAUTHENTICATED` without a certificate where one is needed, else `PERMISSION_DENIED`; the message names the caller's role,
/// the RPC and who may call it. `path` is `/package.Service/Method`.
pub fn check(path: &str, caller: Option<Role>, anonymous: AnonymousCallers) -> Result<(), Status> {
    let row = path.strip_prefix('/').and_then(|path| path.split_once('/')).and_then(|(service, method)| {
        TABLE.iter().find(|(name, _, methods)| *name == service && methods.contains(&method))
    });
    let Some((_, callers, _)) = row else {
        let path: String = path.chars().take(120).flat_map(char::escape_debug).collect();
        return Err(Status::permission_denied(format!("no role may call {path}: it is not in the table of RPCs")));
    };
    match (callers, caller) {
        (Anonymous, None) => Ok(()),
        (RolesOrLocal(_), None) if anonymous == AnonymousCallers::LocalInference => Ok(()),
        (Roles(allowed) | RolesOrLocal(allowed), Some(role)) if allowed.contains(&role) => Ok(()),
        (Roles(allowed) | RolesOrLocal(allowed), None) => Err(Status::unauthenticated(format!(
            "{path} needs a client certificate: it may be called by {}; join with a token of that role",
            names(allowed)
        ))),
        (Roles(allowed) | RolesOrLocal(allowed), Some(role)) => Err(Status::permission_denied(format!(
            "{} may not call {path}: it may be called by {}",
            role.with_article(),
            names(allowed)
        ))),
        (Anonymous, Some(role)) => Err(Status::permission_denied(format!(
            "{} may not call {path}: it is for callers without a certificate, on the enrolment port",
            role.with_article()
        ))),
    }
}

/// Enforces the table on every request of a server: `Server::builder().layer(...)`. Needs connections of
/// [`crate::tls::incoming`]; handlers find the caller's [`SpiffeId`] in the request's extensions.
#[derive(Clone)]
pub struct AuthorizationLayer {
    anonymous: AnonymousCallers,
    revoked: Option<Arc<Revoked>>,
}

impl AuthorizationLayer {
    /// The table alone.
    pub fn new(anonymous: AnonymousCallers) -> AuthorizationLayer {
        AuthorizationLayer { anonymous, revoked: None }
    }

    /// Asks this of every request with a certificate too: an open connection outlives a revocation.
    pub fn with_revoked(mut self, revoked: Arc<Revoked>) -> AuthorizationLayer {
        self.revoked = Some(revoked);
        self
    }

    fn admit<B>(&self, request: &mut Request<B>) -> Result<(), Status> {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return Err(Status::internal(
                "the listener does not say who is calling: serve connections of tls::incoming",
            ));
        };
        if let (Some(id), Some(revoked)) = (&peer.identity, &self.revoked)
            && revoked(id, &peer.fingerprint)
        {
            if let Some(silent) = REFUSED.admit(Instant::now()) {
                warn!(%id, address = %peer.address, silent, "revoked certificate refused");
            }
            return Err(Status::unauthenticated(format!(
                "the certificate of {id} was revoked: join again with a new token"
            )));
        }
        let role = peer.identity.as_ref().map(SpiffeId::role);
        check(request.uri().path(), role, self.anonymous).inspect_err(|status| {
            if let Some(silent) = REFUSED.admit(Instant::now()) {
                warn!(address = %peer.address, reason = status.message(), silent, "call refused");
            }
        })?;
        if let Some(id) = peer.identity {
            request.extensions_mut().insert(id);
        }
        Ok(())
    }
}

impl fmt::Debug for AuthorizationLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorizationLayer")
            .field("anonymous", &self.anonymous)
            .field("revoked", &self.revoked.is_some())
            .finish()
    }
}

impl<S> Layer<S> for AuthorizationLayer {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Authorized<S> {
        Authorized { inner, rules: self.clone() }
    }
}

/// A service behind [`AuthorizationLayer`].
#[derive(Debug, Clone)]
pub struct Authorized<S> {
    inner: S,
    rules: AuthorizationLayer,
}

impl<S, B, R> Service<Request<B>> for Authorized<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.rules.admit(&mut request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

fn names(roles: &[Role]) -> String {
    roles.iter().map(|role| role.with_article()).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use tonic::Code;

    use super::*;

    const PROTOS: [&str; 6] = [
        "inference.proto",
        "fedge/model.proto",
        "fedge/enrolment.proto",
        "fedge/federation.proto",
        "fedge/operators.proto",
        "fedge/feedback.proto",
    ];

    /// (service, path) of every RPC that the protos declare.
    fn declared() -> BTreeSet<(String, String)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found: Vec<String> = std::fs::read_dir(folder.join("fedge"))
            .unwrap()
            .map(|entry| format!("fedge/{}", entry.unwrap().file_name().to_string_lossy()))
            .chain(["inference.proto".to_owned()])
            .collect();
        found.sort();
        let mut expected = PROTOS.map(str::to_owned);
        expected.sort();
        assert_eq!(found, expected, "a .proto file that this test does not know");
        let files = protox::compile(PROTOS, [folder]).unwrap();
        // Services whose protos are others'.
        let mut rpcs: BTreeSet<(String, String)> = [
            ("grpc.health.v1.Health", "Check"),
            ("grpc.health.v1.Health", "Watch"),
            ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo"),
        ]
        .map(|(service, method)| (service.to_owned(), format!("/{service}/{method}")))
        .into();
        for file in &files.file {
            for service in &file.service {
                let service_name = format!("{}.{}", file.package(), service.name());
                for method in &service.method {
                    rpcs.insert((service_name.clone(), format!("/{service_name}/{}", method.name())));
                }
            }
        }
        rpcs
    }

    /// Written apart from the table: who may call a service, with None for callers without a certificate.
    fn allowed(service: &str, path: &str, caller: Option<Role>, anonymous: AnonymousCallers) -> bool {
        let local = anonymous == AnonymousCallers::LocalInference;
        match service {
            "fedge.enrolment.v1.Enrolment" => caller.is_none(),
            "fedge.federation.v1.Federation" => caller == Some(Role::Node),
            "fedge.operators.v1.Operators" => caller == Some(Role::Operator),
            "inference.GRPCInferenceService" if path.ends_with("load") || path.ends_with("Load") => match caller {
                Some(role) => role == Role::Operator,
                None => local,
            },
            "grpc.health.v1.Health" => caller.map_or(local, |role| role != Role::Coordinator),
            "inference.GRPCInferenceService" | "fedge.feedback.v1.Feedback" | "grpc.reflection.v1.ServerReflection" => {
                match caller {
                    Some(role) => matches!(role, Role::Operator | Role::Client),
                    None => local,
                }
            }
            _ => panic!("no row for the service {service}"),
        }
    }

    #[test]
    fn every_rpc_of_the_protos_is_decided_for_every_role_and_for_nobody() {
        let rpcs = declared();
        assert!(rpcs.len() >= 26, "{rpcs:?}");
        let callers = Role::ALL.into_iter().map(Some).chain([None]);
        for caller in callers {
            for anonymous in [AnonymousCallers::EnrolmentOnly, AnonymousCallers::LocalInference] {
                for (service, path) in &rpcs {
                    let decision = check(path, caller, anonymous);
                    let expected = allowed(service, path, caller, anonymous);
                    assert_eq!(decision.is_ok(), expected, "{path} by {caller:?} with {anonymous:?}: {decision:?}");
                    if let Err(status) = decision {
                        let code = if caller.is_none() { Code::Unauthenticated } else { Code::PermissionDenied };
                        assert_eq!(status.code(), code, "{path} by {caller:?}");
                        assert!(status.message().contains(path), "{}", status.message());
                        if let Some(role) = caller {
                            assert!(status.message().contains(role.with_article()), "{}", status.message());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_table_has_no_rpc_that_the_protos_lack() {
        let declared = declared();
        for (service, _, methods) in TABLE {
            for method in *methods {
                let row = ((*service).to_owned(), format!("/{service}/{method}"));
                assert!(declared.contains(&row), "{row:?}");
            }
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_refused_to_everybody() {
        let paths = [
            "",
            "/",
            "/fedge.federation.v1.Federation",
            "/fedge.federation.v1.Federation/",
            "/fedge.federation.v1.Federation/Hello/",
            "/fedge.federation.v1.Federation/hello",
            "//fedge.federation.v1.Federation/Hello",
            "fedge.federation.v1.Federation/Hello",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ];
        for path in paths {
            for caller in Role::ALL.into_iter().map(Some).chain([None]) {
                let status = check(path, caller, AnonymousCallers::LocalInference).unwrap_err();
                assert_eq!(status.code(), Code::PermissionDenied, "{path}");
            }
        }
    }
}
