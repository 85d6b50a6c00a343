"""Questions for `retrieval_quality.py`: what a user would ask, and the articles that answer.

They are paraphrased on purpose: they avoid the words of the expected article's title wherever a
person could do without them. Several articles are listed when each answers the question by
itself; the first is the one meant. Odd and even questions form two halves, which show how far a
figure wobbles; only the rerank weights were searched on one half alone.
"""

from typing import NamedTuple


class Question(NamedTuple):
    """A question, its language, and the ids of the articles that answer it."""

    language: str
    text: str
    expected: tuple[str, ...]


_ENGLISH = (
    (
        "Why does memory fill up as the conversation with the model gets longer?",
        "kv-cache kv-cache-zh",
    ),
    ("How many bytes do I need to keep attention state for each token?", "kv-cache kv-cache-zh"),
    ("How can fragmentation of accelerator memory between requests be avoided?", "paged-attention"),
    ("What happens to running sequences when no free blocks are left?", "paged-attention"),
    ("Why should finished sequences leave before the slowest one is done?", "continuous-batching"),
    (
        "A newly arrived long prompt freezes everyone's stream, what helps?",
        "continuous-batching prefill-and-decode pd-disaggregation",
    ),
    (
        "Can a small draft model make a big one answer faster without changing results?",
        "speculative-decoding",
    ),
    (
        "Is it worth letting a helper propose tokens when the server is busy?",
        "speculative-decoding",
    ),
    ("Can I squeeze a 70B model onto a single 48 GB card?", "weight-quantization"),
    ("What breaks first if I store parameters as int4?", "weight-quantization"),
    (
        "Why is reading the prompt limited by compute but writing by bandwidth?",
        "prefill-and-decode",
    ),
    ("How do I split one model over eight GPUs in a server?", "tensor-parallelism"),
    ("Which numbers describe how responsive a chat stream feels?", "ttft-and-tpot"),
    (
        "My requests share the same system instructions, can I avoid paying for them each time?",
        "prefix-caching",
    ),
    ("Should I cut my manuals by headings or by a fixed number of tokens?", "chunking"),
    ("How do I merge keyword results with semantic results?", "hybrid-search"),
    ("Exact error codes are not found by my semantic search", "hybrid-search"),
    (
        "A second model reads question and passage together, is the gain worth the time?",
        "cross-encoder-reranking",
    ),
    ("My English sentence vectors give random results for Chinese texts", "embedding-models"),
    ("How many dimensions should my text vectors have?", "embedding-models"),
    (
        "How do I know whether my search step or my generator is to blame for bad answers?",
        "rag-evaluation",
    ),
    ("The model invents links to sources that do not exist", "citations"),
    ("How do I describe a function to the model so that it picks the right one?", "tool-calling"),
    ("My assistant keeps repeating the same search over and over", "agent-loop-limits"),
    ("How can a bot remember a user's preferences next week?", "agent-memory"),
    ("Hidden text on a web page told my assistant to leak data", "prompt-injection"),
    ("When should one assistant transfer the user to a specialist?", "multi-agent-handoff"),
    ("What do the four parts of the header passed between services mean?", "trace-context"),
    ("How can we keep all failing requests but only a few successful ones?", "trace-sampling"),
    ("I see a spike on my latency graph, how do I jump to one slow request?", "exemplars"),
    ("Which of the three hundred operations really made the request slow?", "critical-path"),
    ("What should a good JSON log line contain and what must stay out?", "structured-logging"),
    ("How many failures per month may we allow before we stop releasing?", "slo-error-budget"),
    ("When should the pager ring for a slow leak of errors?", "slo-error-budget"),
    ("The client gave up but the server is still working on the answer", "deadlines"),
    ("How do I pass the remaining time on to the services I call?", "deadlines"),
)

_CHINESE = (
    ("对话越长显存占用越高是什么原因？", "kv-cache-zh kv-cache"),
    ("怎样让注意力的历史状态少占一点空间？", "kv-cache-zh kv-cache"),
    ("24G 的卡能放下多大的模型、支持多少人同时用？", "gpu-memory-estimate"),
    ("权重、激活、运行时各要留多少空间？", "gpu-memory-estimate"),
    ("长提示一来别人的输出就卡住，能不能用两组机器？", "pd-disaggregation"),
    ("每个词元只激活一小部分参数的模型怎么部署？", "moe-inference"),
    ("有些专家特别忙、其他卡空等怎么办？", "moe-inference"),
    ("为什么把注意力分块在片上算会更快？", "flash-attention"),
    ("模型标称能读百万字，为什么放在中间的内容总被忽略？", "long-context"),
    ("怎么把模型的窗口从 8K 扩到 128K？", "long-context"),
    ("怎么保证模型返回的 JSON 一定能解析？", "structured-output"),
    ("流量突然翻倍，服务应该排队还是拒绝？", "admission-control"),
    ("几百万条向量怎样快速找到最近邻？", "vector-index"),
    ("只有几万条数据需要专门的向量数据库吗？", "vector-index"),
    ("没有空格的语言怎样建倒排？", "chinese-tokenization"),
    ("jieba 这类词典方法和二元切法哪个好？", "chinese-tokenization"),
    ("用户问“那第二种呢”搜不到东西", "query-rewriting"),
    ("一个问题里同时问了三件事，检索前怎么处理？", "query-rewriting"),
    ("文档改了以后多久能搜到新内容？", "index-freshness"),
    ("删掉的文件还会出现在结果里", "index-freshness"),
    ("资料里没有答案时模型仍然乱编", "hallucination-and-refusal"),
    ("相似的提问能不能直接返回以前的回答？", "semantic-cache"),
    ("先列步骤再执行和走一步看一步有什么区别？", "planning"),
    ("智能体退款之前怎样让主管点头？", "human-in-the-loop"),
    ("接口超时后不知道有没有扣款，能再调一次吗？", "tool-errors"),
    ("怎样防止一个任务一晚上烧掉整月的费用？", "token-budget"),
    ("历史消息太多，应该先删哪些？", "context-engineering"),
    ("一次调用跨好几个进程，怎样看出时间花在哪？", "distributed-tracing"),
    ("为什么平均响应时间看不出问题？", "red-metrics tail-latency"),
    ("哪些内容不能放进监控的标签里？", "red-metrics"),
    ("记录模型调用时属性该叫什么名字？", "genai-conventions"),
    ("失败以后隔多久再试才不会压垮对方？", "retries-and-backoff"),
    ("并行查十个分片，为什么整体总是慢？", "tail-latency"),
    ("对方服务已经挂了，怎样快速失败并换一个备用的？", "circuit-breaker"),
    ("怎样从一行日志找到对应的那次请求？", "log-trace-correlation"),
    ("页面报错时用户应该把哪个编号告诉客服？", "log-trace-correlation"),
)

# Asked in one language, answered by an article that exists in the other only.
_CROSS = (
    ("en", "What is HNSW and when do I need it?", "vector-index"),
    ("en", "How does constrained decoding keep JSON valid?", "structured-output"),
    ("en", "How does YaRN extend RoPE?", "long-context"),
    ("en", "Should I use exponential backoff with jitter and Retry-After?", "retries-and-backoff"),
    ("zh", "traceparent 里的 flags 是什么意思？", "trace-context"),
    ("zh", "GPTQ 和 AWQ 有什么区别？", "weight-quantization"),
    ("zh", "RRF 里的 k 为什么取 60？", "hybrid-search"),
    ("zh", "TTFT 和 TPOT 怎么测？", "ttft-and-tpot"),
)

QUESTIONS = tuple(
    Question(language, text, tuple(expected.split()))
    for language, questions in (("en", _ENGLISH), ("zh", _CHINESE))
    for text, expected in questions
)
CROSS_LANGUAGE = tuple(
    Question(language, text, tuple(expected.split())) for language, text, expected in _CROSS
)
