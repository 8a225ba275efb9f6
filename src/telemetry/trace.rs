//! Traces: the spans of requests, delivered by OTLP over HTTP to a collector.
//!
//! Everything that knows OpenTelemetry. The rest of the service opens spans of `tracing`, under
//! plain names; what leaves is named here, after the semantic conventions for HTTP and databases.
//!
//! # Security
//! Only attributes of [`ATTRIBUTES`] leave. The header `traceparent` is never read: a proxy passes
//! on what its clients write, and a stranger who could set it would decide what is sampled, and put
//! requests into the traces of others.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use opentelemetry::{
    KeyValue, Value,
    trace::{SpanKind, Status, TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData,
        SpanExporter as Export,
    },
};
use tracing::{Level, Span, Subscriber, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer, filter, registry::LookupSpan};

use crate::{
    config::{Config, ConfigError},
    outbound,
};

/// How long one delivery may take.
const DELIVERY: Duration = Duration::from_secs(3);

/// How long spans are gathered for one delivery.
const GATHERING: Duration = Duration::from_secs(2);

/// How long the last delivery may hold up the end of the process.
const LAST_DELIVERY: Duration = Duration::from_secs(2);

/// The name of a request's span.
const REQUEST: &str = "request";

/// Our fields, and what they are called outside.
const ATTRIBUTES: [(&str, &str); 7] = [
    ("address", "client.address"),
    ("method", "http.request.method"),
    ("operation", "db.operation.name"),
    ("reason", "countersign.reason"),
    ("request_id", "countersign.request_id"),
    ("route", "http.route"),
    ("status", "http.response.status_code"),
];

/// What delivers spans, if `telemetry.otlp_endpoint` says where to; ends with [`Self::end`].
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    pub(super) fn of(config: &Config) -> Result<Self, ConfigError> {
        let settings = &config.telemetry;
        if settings.otlp_endpoint.is_empty() {
            return Ok(Self(None));
        }
        let exporter = exporter(config).map_err(|problem| ConfigError::Invalid {
            key: "telemetry.otlp_endpoint",
            problem: format!("cannot be used: {problem}"),
        })?;
        let gathering = BatchConfigBuilder::default().with_scheduled_delay(GATHERING);
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(gathering.build())
            .build();
        let resource = Resource::builder_empty()
            .with_service_name("countersign")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let sampler = Sampler::TraceIdRatioBased(settings.otlp_sample_ratio);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_resource(resource.build())
            .build();
        Ok(Self(Some(provider)))
    }

    /// Takes the spans of this crate, and neither events, whose text is for the log, nor the spans
    /// of libraries.
    pub(super) fn layer<S>(&self) -> Option<impl Layer<S> + use<S>>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let ours = filter::filter_fn(|metadata| {
            metadata.is_span() && metadata.target().starts_with("countersign")
        });
        let provider = self.0.as_ref()?;
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("countersign"))
            .with_context_activation(false)
            .with_level(false)
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        Some(layer.with_filter(ours.with_max_level_hint(LevelFilter::from_level(Level::DEBUG))))
    }

    /// Delivers what has been gathered; gives up soon if nobody takes it.
    pub async fn end(self) {
        if let Some(provider) = self.0 {
            let ending = move || provider.shutdown_with_timeout(LAST_DELIVERY);
            // That deliveries fail has been logged when they began to.
            let _ = tokio::task::spawn_blocking(ending).await;
        }
    }
}

/// The trace that a span belongs to, if that is delivered.
pub fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    context.is_sampled().then(|| context.trace_id().to_string())
}

fn exporter(config: &Config) -> Result<Courier, String> {
    let tls = outbound::tls_with_roots(&config.outbound).map_err(|error| error.to_string())?;
    // On a thread of its own: the blocking client refuses to be made where there is a runtime.
    let client = thread::spawn(move || {
        reqwest::blocking::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .timeout(DELIVERY)
            .build()
    });
    let client = client
        .join()
        .map_err(|_| "the client could not be made".to_owned())?
        .map_err(|error| error.to_string())?;
    let endpoint = config.telemetry.otlp_endpoint.trim_end_matches('/');
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(format!("{endpoint}/v1/traces"))
        .with_timeout(DELIVERY)
        .build()
        .map_err(|error| error.to_string())?;
    Ok(Courier {
        exporter,
        fails: AtomicBool::new(false),
    })
}

/// Names what leaves, and logs once when it does not arrive.
#[derive(Debug)]
struct Courier {
    exporter: SpanExporter,
    fails: AtomicBool,
}

impl Export for Courier {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        batch.iter_mut().for_each(conform);
        let result = self.exporter.export(batch).await;
        let failed_before = self.fails.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !failed_before => tracing::warn!(
                %error,
                "traces cannot be delivered to telemetry.otlp_endpoint; they are dropped"
            ),
            Ok(()) if failed_before => tracing::info!("traces are delivered again"),
            Ok(()) | Err(_) => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Gives a span the names of the semantic conventions, and leaves out what has none.
fn conform(span: &mut SpanData) {
    let attributes = std::mem::take(&mut span.attributes);
    let renamed = attributes.into_iter().filter_map(|attribute| {
        let is_it = |(ours, _): &&(&str, &str)| *ours == attribute.key.as_str();
        let (_, name) = ATTRIBUTES.iter().find(is_it)?;
        Some(KeyValue::new(*name, attribute.value))
    });
    span.attributes = renamed.collect();
    if span.name != REQUEST {
        return;
    }
    span.span_kind = SpanKind::Server;
    let value = |name: &str| {
        let found = span.attributes.iter().find(|kv| kv.key.as_str() == name);
        found.map(|attribute| attribute.value.clone())
    };
    if let (Some(method), Some(route)) = (value("http.request.method"), value("http.route")) {
        span.name = format!("{} {}", method.as_str(), route.as_str()).into();
    }
    if let Some(Value::I64(status @ 500..)) = value("http.response.status_code") {
        span.status = Status::error("");
        span.attributes
            .push(KeyValue::new("error.type", status.to_string()));
    }
}
