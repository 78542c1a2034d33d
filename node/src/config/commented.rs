//! The text of `node.toml` that `join` writes: every key with its default and what it is for.
//! Ranges are checked in `config`.

use super::Config;

impl Config {
    /// The file's text with every default, commented.
    pub fn commented() -> String {
        let d = Config::default();
        format!(
            "# fedge node. Unknown keys are errors; FEDGE_* variables and flags override (`fedge node run --help`).\n\
             \n\
             [inference]\n\
             # ip:port of the Open Inference Protocol over gRPC, mutual TLS.\n\
             listen = {:?}\n\
             # ip:port of the same over HTTP (usually port 8000); empty: none.\n\
             http = {:?}\n\
             # Without TLS: on loopback only.\n\
             plaintext = {}\n\
             # Share of single-sample requests whose input is kept for a later label, 0 to 1.\n\
             keep = {:?}\n\
             # Which ones: \"sampled\" (by chance) or \"uncertain\" (those the model was least sure of).\n\
             keep_policy = \"sampled\"\n\
             # Threads that run models; 0: one a core.\n\
             threads = {}\n\
             \n\
             [metrics]\n\
             # ip:port of health and metrics in plaintext, and of nothing else (usually port 8002); empty: none.\n\
             listen = {:?}\n\
             \n\
             [telemetry]\n\
             # http://HOST:4317 of an OpenTelemetry collector that takes OTLP/gRPC; empty: no traces.\n\
             otlp_endpoint = {:?}\n\
             # Share of the requests that are traced where their traceparent does not decide, 0 to 1.\n\
             trace_ratio = {:?}\n\
             \n\
             [training]\n\
             # Threads of the low-priority training pool.\n\
             threads = {}\n\
             # What training computes on: \"cpu\", or \"gpu\" over Vulkan, Metal or DirectX 12, in a program built with the feature\n\
             # wgpu.\n\
             device = \"{}\"\n\
             # Samples that earlier trainings saw, replayed to a training for each new one (0: new ones alone); negative: all\n\
             # that the store holds.\n\
             replay = {:?}\n\
             # When training may run: a share of the time (it sleeps in between), hours of the device's own day such as\n\
             # \"22:00-06:00\" (empty: any), and whether only while it is not on its battery. A node that rests is not selected.\n\
             share = {:?}\n\
             hours = {:?}\n\
             mains_power = {}\n\
             # A trained model whose loss on the held-out samples is more than this many times its base's is not sent; 0: any.\n\
             worst_loss = {:?}\n\
             \n\
             # A store that is full is a class-balanced reservoir: the class with the most samples gives one up.\n\
             [samples]\n\
             max_samples = {}\n\
             max_bytes = {}\n\
             # Answered requests whose inputs wait for a label, and for how long.\n\
             max_pending = {}\n\
             pending_ttl_s = {}\n\
             \n\
             # Who may ask a model, and how its requests are queued; all keys of a standalone node's model.toml but those that\n\
             # come with each version.\n\
             # [model.digits]\n\
             # clients = [\"till-3\"]\n\
             # max_batch_size = 32\n\
             \n\
             # Whether the requests have changed: the latest `window` answered inputs, and how sure the answers were, against the\n\
             # first `reference` ones. `level`: probability of a false alarm in one comparison.\n\
             [drift]\n\
             enabled = {}\n\
             reference = {}\n\
             window = {}\n\
             level = {:?}\n\
             \n\
             # Labelled samples, read at start: .csv, .npz, IDX, or a folder that holds a folder of .png and .jpg pictures for\n\
             # each class. `model` may be left out. A row that is wrong refuses the file, or is left out with \"skip\".\n\
             # [[data]]\n\
             # model = \"digits\"\n\
             # path = \"samples.csv\"\n\
             # bad_rows = \"stop\"\n",
            d.inference.listen,
            d.inference.http,
            d.inference.plaintext,
            d.inference.keep,
            d.inference.threads,
            d.metrics.listen,
            d.telemetry.otlp_endpoint,
            d.telemetry.trace_ratio,
            d.training.threads,
            d.training.device,
            d.training.replay,
            d.training.share,
            d.training.hours,
            d.training.mains_power,
            d.training.worst_loss,
            d.samples.max_samples,
            d.samples.max_bytes,
            d.samples.max_pending,
            d.samples.pending_ttl_s,
            d.drift.enabled,
            d.drift.reference,
            d.drift.window,
            d.drift.level,
        )
    }
}
