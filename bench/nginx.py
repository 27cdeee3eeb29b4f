"""nginx as the upstream of `peers.py`, which answers every request with a constant, and as the plainest of proxies."""

from pathlib import Path

STREAMED = {"X-Bench-Answer": "events"}
"""Asks the upstream, which does not read bodies, for server-sent events."""

_COMPLETION = (
    '{"id":"chatcmpl-upstream","object":"chat.completion","created":1700000000,"model":"gpt-4.1-mini-2025-04-14",'
    '"choices":[{"index":0,"message":{"role":"assistant","content":"card_arrival","refusal":null,"annotations":[]},'
    '"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":520,"completion_tokens":4,"total_tokens":524,'
    '"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,'
    '"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"service_tier":"default",'
    '"system_fingerprint":"fp_upstream"}'
)
_CHUNK = (
    'data: {"id":"chatcmpl-upstream","object":"chat.completion.chunk","created":1700000000,'
    '"model":"gpt-4.1-mini-2025-04-14","service_tier":"default","system_fingerprint":"fp_upstream",'
    '"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]}'
)
_DELTAS = (
    ('{"role":"assistant","content":"","refusal":null}', "null"),
    *((f'{{"content":"{piece}"}}', "null") for piece in ("card", "_", "arrival")),
    ("{}", '"stop"'),
)
_EVENTS = "".join(_CHUNK % each + "\n\n" for each in _DELTAS) + "data: [DONE]\n\n"
_NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_buffer_size 64k;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{http}
}}
"""
_CONSTANT = """
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        default_type application/json;
        location / {{
            if ($http_x_bench_answer) {{ rewrite ^ /events last; }}
            return 200 '{completion}';
        }}
        location = /events {{
            default_type text/event-stream;
            return 200 '{events}';
        }}
    }}"""
_PROXY = """
    upstream behind {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location / {{
            proxy_pass http://behind;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}"""


def upstream(folder: Path, port: int) -> list[str]:
    """The command of a server that answers with one chat completion, or its events."""
    events = _EVENTS.replace("\n", "\\n")
    return _nginx(folder, _CONSTANT.format(port=port, completion=_COMPLETION, events=events))


def proxy(folder: Path, port: int, behind: int) -> list[str]:
    """The command of a server that passes every request to the port `behind`, over connections that stay open."""
    return _nginx(folder, _PROXY.format(port=port, upstream=behind))


def _nginx(folder: Path, http_block: str) -> list[str]:
    file = folder / "nginx.conf"
    file.write_text(_NGINX.format(folder=folder, http=http_block), encoding="utf-8")
    return ["nginx", "-e", "stderr", "-c", str(file)]
