"""A small program named trtexec, CONSTRUCTED for tests: it holds no TensorRT and times nothing.

It knows exactly the flags that trtexec of its version knows (samples/common/sampleOptions.cpp of
github.com/NVIDIA/TensorRT at these releases; those that a version calls deprecated are left out), says what
that version says, and writes files of the form that sampleReporting.cpp gives them. Its numbers are made up,
unless it `computes`: then outputs are those of the ONNX file, by ONNX Runtime. Its times are always made up.
"""

import stat
import sys
from pathlib import Path

SHARED = (
    *("--help", "--onnx", "--saveEngine", "--loadEngine", "--timingCacheFile", "--profilingVerbosity"),
    *("--minShapes", "--optShapes", "--maxShapes", "--shapes", "--loadInputs", "--iterations", "--duration"),
    *("--warmUp", "--exportTimes", "--exportProfile", "--exportLayerInfo", "--exportOutput", "--verbose"),
    "--exposeDMA",
)
BEFORE_11 = (
    "--useCudaGraph",
    "--useSpinWait",
    "--noDataTransfers",
    "--separateProfileRun",
    "--fp16",
    "--int8",
)
FLAGS = {
    "v8201": (*SHARED, *BEFORE_11, "--buildOnly", "--workspace"),
    "v8502": (*SHARED, *BEFORE_11, "--buildOnly", "--memPoolSize"),
    "v8601": (*SHARED, *BEFORE_11, "--skipInference", "--memPoolSize"),
    "v100300": (*SHARED, *BEFORE_11, "--skipInference", "--stronglyTyped", "--memPoolSize"),
    "v101600": (*SHARED, *BEFORE_11, "--skipInference", "--stronglyTyped", "--memPoolSize"),
    "v110100": (*SHARED, "--skipInference", "--includeDataTransfers", "--noSpinWait", "--noCudaGraph"),
}

PROGRAM = r"""#!PYTHON
import json, os, struct, sys, time
VERSION, FLAGS, LOG, TRICK = "@VERSION", @FLAGS, "@LOG", "@TRICK"
banner = "TensorRT.trtexec [TensorRT %s] # trtexec %s" % (VERSION, " ".join(sys.argv[1:]))
stamp = "[11/25/2026-07:00:00] "


def info(text):
    print(stamp + "[I] " + text)


def fail(*lines):
    sys.stderr.write("".join(stamp + "[E] " + line + "\n" for line in lines))
    print("&&&& FAILED " + banner)
    sys.exit(1)


print("&&&& RUNNING " + banner)
given = dict(part.split("=", 1) if "=" in part else (part, "") for part in sys.argv[1:])
with open(LOG, "a") as log:
    log.write(json.dumps(given) + "\n")
for flag in given:
    if flag not in FLAGS:
        fail("Unknown option: %s %s" % (flag, given[flag]))
if "--help" in given:
    print("=== Model Options ===")
    sys.exit(0)
if TRICK == "no gpu":
    fail("Cuda failure: no CUDA-capable device is detected")
if TRICK == "hangs":
    time.sleep(60)
if TRICK == "killed":
    os.kill(os.getpid(), 9)
old = VERSION in ("v8201", "v8502")
whole = ["--warmUp", "--iterations"] + (["--duration"] if VERSION == "v8201" else [])
for flag in whole:
    int(given.get(flag, "0"))
info("Compute Capability: 8.7")
detailed = given.get("--profilingVerbosity") == "detailed"
if "--onnx" in given:
    sys.path.insert(0, "@ROOT")
    from bcnet.agent.onnx_inputs import _fields, onnx_inputs  # onnx is slow to import

    content = open(given["--onnx"], "rb").read()
    graph = dict(_fields(content))[7]
    nodes = [_fields(value) for field, value in _fields(graph) if field == 1]
    for number, node in enumerate(nodes):
        if dict(node)[4] == b"GridSample":
            fail("[TRT] ModelImporter.cpp:748: While parsing node number %d [GridSample -> \"y\"]:" % number,
                 "[TRT] ModelImporter.cpp:749: --- Begin node ---",
                 "[TRT] ModelImporter.cpp:754: ERROR: builtin_op_importers.cpp:4951 In function import:\n"
                 "[8] Assertion failed: creator && \"Plugin not found\"",
                 "Failed to parse onnx file", "Parsing model failed", "Engine set up failed")
    outputs = [value for field, value in _fields(graph) if field == 12]
    sides = {}
    for value in outputs:
        entry = dict(_fields(value))
        shape = dict(_fields(dict(_fields(entry[2]))[1]))[2]
        sides[entry[1].decode()] = [dict(_fields(side)).get(1, -1) for _, side in _fields(shape)]
    engine = {
        "inputs": dict(onnx_inputs(content)),
        "outputs": sides,
        "nodes": [dict(node)[3].decode() for node in nodes], "detailed": detailed,
    }
    if TRICK == "computes":
        engine["onnx"] = content.hex()
    dynamic = any(-1 in shape for shape in engine["inputs"].values())
    if dynamic and "--minShapes" not in given:
        fail("Error[4]: [network.cpp::validate::2959] Error Code 4: Internal Error (no optimization profile)",
             "Engine could not be created from network", "Building engine failed", "Engine set up failed")
    with open(given["--timingCacheFile"], "ab") as cache:
        cache.write(b"timed")
    with open(given["--saveEngine"], "wb") as file:
        file.write(b"constructed engine " + json.dumps(engine).encode())
else:
    content = open(given["--loadEngine"], "rb").read()
    if not content.startswith(b"constructed engine "):
        fail("Error[1]: [stdArchiveReader.cpp::40] Error Code 1: Serialization (Magic tag does not match)",
             "Engine deserialization failed", "Engine set up failed")
    engine = json.loads(content[19:].decode())
names = [engine["nodes"][0] + " + " + engine["nodes"][1], *engine["nodes"][2:]]
if "--exportLayerInfo" in given:
    layers = names
    if engine["detailed"]:
        layers = [{"Name": name, "Metadata": "[ONNX Layer: %s]" % name.replace(" + ", "]\x1e[ONNX Layer: ")}
                  for name in names]
    # Newer versions put a control character between the parts, which no JSON may hold.
    text = json.dumps({"Layers": layers, "Bindings": []}).replace("\\u001e", "\x1e")
    open(given["--exportLayerInfo"], "w").write(text)
if "--skipInference" in given or "--buildOnly" in given:
    print("&&&& PASSED " + banner)
    sys.exit(0)
shapes = dict(part.rsplit(":", 1) for part in given["--shapes"].split(",")) if "--shapes" in given else {}
bound = {}
for kind, side in (("input", "inputs"), ("output", "outputs")):
    for name, shape in engine[side].items():
        batch = int(list(shapes.values())[0].split("x")[0]) if shapes else 1
        if kind == "input" and -1 in shape and name not in shapes:
            said = "Shape missing for input with dynamic shape: %s"
            if VERSION == "v8201":
                said = "Dynamic dimensions required for input: %s, but no shapes were provided. "
            sys.stderr.write(stamp + "[W] " + said % name + "Automatically setting shape to: 1x1\n")
        bound[name] = [batch if n == -1 else n for n in shape]
        dims = "x".join(map(str, bound[name]))
        info("Created %s binding for %s with dimensions %s" % (kind, name, dims) if old else
             "%s binding for %s with dimensions %s is created." % (kind.title(), name, dims))
total, computed = 0.0, {}
if "onnx" in engine and "--loadInputs" in given:
    import numpy, onnxruntime

    session = onnxruntime.InferenceSession(bytes.fromhex(engine["onnx"]), providers=["CPUExecutionProvider"])
    feeds = {}
    for name, file in (part.rsplit(":", 1) for part in given["--loadInputs"].split(",")):
        feeds[name] = numpy.fromfile(file, numpy.float32).reshape(bound[name])
    computed = dict(zip((own.name for own in session.get_outputs()), session.run(None, feeds)))
elif "--loadInputs" in given:
    for part in given["--loadInputs"].split(","):
        name, file = part.rsplit(":", 1)
        data, count = open(file, "rb").read(), 1
        for n in bound[name]:
            count *= n
        if len(data) != 4 * count:
            fail("Unexpected file size for input file: %s" % file)
        values = struct.unpack("<%df" % count, data)
        each = count // bound[name][0]
        total = [sum(values[i * each:(i + 1) * each]) for i in range(bound[name][0])]
if "--exportTimes" in given:
    rows, warm = [], int(given["--warmUp"])
    for number in range(int(given["--iterations"]) + 2):
        start = warm - 2 + number if number < 2 else warm + number
        if start < warm and VERSION != "v8201":
            continue
        compute = 99 if start < warm else 1.5 + number / 1000.0
        rows.append('{ "startH2dMs" : %g, "startComputeMs" : %d, "endD2hMs" : %g, "computeMs" : %g }'
                    % (start - 0.25, start, start + compute + 0.5, compute))
    open(given["--exportTimes"], "w").write("[\n  " + "\n, ".join(rows) + "\n]\n")
if "--exportProfile" in given:
    rows = ['{ "count" : %s }' % given["--iterations"]]
    for number, name in enumerate(names):
        median = "" if VERSION == "v8201" else ', "medianMs" : %g' % (0.01 * (number + 1))
        rows.append('{ "name" : "%s", "timeMs" : 1.5, "averageMs" : %g%s, "percentage" : -nan }'
                    % (name, 0.02 * (number + 1), median))
    open(given["--exportProfile"], "w").write("[\n  " + "\n, ".join(rows) + "\n]\n")
if "--exportOutput" in given:
    rows = []
    for name in reversed(list(engine["outputs"])):  # trtexec's own order is that of a hash table
        shape = bound[name]
        each = 1
        for n in shape[1:]:
            each *= n
        if computed:
            values = computed[name].flat
        else:
            values = [total[i] + j for i in range(shape[0]) for j in range(each)]
        rows.append('{ "name" : "%s"\n  , "dimensions" : "%s"\n  , "values" : [ %s ]\n  }'
                    % (name, "x".join(map(str, shape)), ", ".join("%g" % v for v in values)))
    open(given["--exportOutput"], "w").write("[\n  " + "\n, ".join(rows) + "\n]\n")
print("&&&& PASSED " + banner)
"""


def write(folder: Path, version: str, trick: str = "") -> Path:
    """Write the program into a folder. What it was given is logged, a line a start, into `calls.jsonl` there.

    `trick` is "no gpu", "hangs" or "killed": what happens whatever it is asked, but for its help. Or it is
    "computes".
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trtexec"
    text = PROGRAM.replace("PYTHON", sys.executable, 1)
    for word, value in (
        ("@VERSION", version),
        ("@FLAGS", repr(FLAGS[version])),
        ("@LOG", str(folder / "calls.jsonl")),
        ("@TRICK", trick),
        ("@ROOT", str(Path(__file__).parents[2])),
    ):
        text = text.replace(word, value, 1)
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
