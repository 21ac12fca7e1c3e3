"""Running and reading files without the code that wrote them: onnxruntime decodes."""

import numpy as np
import onnx
import onnxruntime

STATE = ".parametrizations."


def session(model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


def run(path, *inputs) -> np.ndarray:
    runner = session(str(path))
    names = [given.name for given in runner.get_inputs()]
    return runner.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0]


def follow(value, users, count) -> list:
    """Return the next nodes that a value goes through, at most ``count``."""
    nodes = []
    while value in users and len(nodes) < count:
        nodes.append(users[value])
        value = nodes[-1].output[0]
    return nodes


def origin(name, makers) -> str:
    """Return the tensor that a value is a view or a cast of."""
    while name in makers and makers[name].op_type in ("Cast", "Reshape", "Unsqueeze"):
        name = makers[name].input[0]
    return name


def read_weights(path) -> dict[str, np.ndarray]:
    """Let onnxruntime compute every value that a palette's own nodes lead to."""
    model = onnx.load(path)
    graph = model.graph
    users = {name: node for node in graph.node for name in node.input}
    makers = {name: node for node in graph.node for name in node.output}
    ends, held_names = {}, {held.name for held in graph.initializer}
    for held in graph.initializer:
        if STATE in held.name and held.name.endswith(".indices"):
            prefix, _, state = held.name.partition(STATE)
            palette = held.name.removesuffix("indices")
            value, done = held.name, ""
            # Up to the Where of a sparse weight, or the Reshape that follows the Gather, and a
            # factor for each channel.
            end = "Where" if f"{palette}mask" in held_names else "Reshape"
            while not done.endswith(end) or "Gather" not in done:
                done += users[value].op_type
                value = users[value].output[0]
            for way in (["Mul"], ["Reshape", "Mul", "Reshape"]):  # per channel, per block
                nodes = follow(value, users, len(way))
                if [node.op_type for node in nodes] == way and any(
                    origin(name, makers) == f"{palette}scale" for name in nodes[len(way) // 2].input
                ):
                    value = nodes[-1].output[0]
                    break
            ends[value] = f"{prefix}.{state.partition('.')[0]}"
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in ends)
    # What the weights do not need goes, inputs included.
    needed, kept = set(ends), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.insert(0, node)
            needed |= set(node.input)
    del graph.node[:]
    graph.node.extend(kept)
    del graph.input[:]
    decoded = session(model.SerializeToString()).run(list(ends), {})
    return dict(zip(ends.values(), decoded, strict=True))
