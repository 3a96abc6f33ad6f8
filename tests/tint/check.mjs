// Compiles every WGSL file of a folder with Tint, through Dawn's null backend: a second compiler's opinion.
// naga, inside wgpu, accepts barriers and subgroup operations in non-uniform control flow; browsers do not.
//
//   node tests/tint/check.mjs DIR           every DIR/*.wgsl, one line a file; exit status 1 on any error or warning
//   node tests/tint/check.mjs --self-test   the checker itself: good shaders pass, and each planted fault is reported
//
// The null device has WebGPU's default limits (8 storage buffers, 16 KiB of workgroup memory, 256 invocations), and
// building a pipeline tests them. A variant that needs more says so in a line of its own, `// limits: larger`, and
// is compiled without building pipelines.
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

const home = new URL('../../target/tint/node_modules/webgpu/index.js', import.meta.url);
const { create, globals } = await import(home).catch((error) => {
    console.error(`Tint is not installed: run tests/drivers.sh (${error.message})`);
    process.exit(1);
});
// All three stay reachable for ever: node crashes when it collects one of them.
Object.assign(globalThis, globals, { gpu: create(['backend=null']) });
globalThis.adapter = await gpu.requestAdapter();
globalThis.device = await adapter.requestDevice({ requiredFeatures: ['shader-f16', 'subgroups'] });

const withoutComments = (text) => text.replace(/\/\/.*|\/\*[^]*?\*\//g, ' ');

// What is wrong with a shader, as a list of texts; empty when nothing is.
async function faults(text) {
    const bare = withoutComments(text);
    const entries = [...bare.matchAll(/@compute\b[^{};]*?\bfn\s+(\w+)/g)].map((match) => match[1]);
    if (entries.length === 0) return ['no @compute entry point'];
    // Tint asks for this line and naga refuses it, so the shaders do not have it. On the first line, to keep the
    // numbers of the others.
    const subgroups = /\bsubgroup\w+\s*\(|\bquad\w+\s*\(|@builtin\(\s*(subgroup_|num_subgroups)/.test(bare);
    const code = (subgroups ? 'enable subgroups; ' : '') + text;

    device.pushErrorScope('validation');
    const module = device.createShaderModule({ code });
    const found = (await module.getCompilationInfo()).messages
        .filter((message) => message.type !== 'info')
        .map((message) => `${message.type} at ${message.lineNum}:${message.linePos}: ${message.message}`);
    const scope = await device.popErrorScope();
    if (scope && found.length === 0) found.push(scope.message);
    if (found.length > 0 || /^\s*\/\/ limits: larger\s*$/m.test(text)) return found;

    for (const entryPoint of entries) {
        const compute = { module, entryPoint };
        await device.createComputePipelineAsync({ layout: 'auto', compute })
            .catch((error) => found.push(`pipeline ${entryPoint}: ${error.message}`));
    }
    return found;
}

async function checkFolder(folder) {
    const names = readdirSync(folder).filter((name) => name.endsWith('.wgsl')).sort();
    let bad = 0;
    for (const name of names) {
        const found = await faults(readFileSync(join(folder, name), 'utf8'));
        if (found.length > 0) bad += 1;
        console.log(found.length === 0 ? `ok     ${name}` : `FAILED ${name}\n    ${found.join('\n').replaceAll('\n', '\n    ')}`);
    }
    console.log(`${names.length} shaders, ${bad} refused by Tint`);
    return names.length > 0 && bad === 0;
}

// A shader of the usual shape: f32 and packed 16-bit storage, workgroup memory, barriers, a parameter in immediates.
const shader = (body, size = 64, memory = 64) => `
struct P { factor: f32 }
var<immediate> p: P;
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
var<workgroup> tile: array<f32, ${memory}>;
@compute @workgroup_size(${size})
fn scale(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    tile[lane] = unpack2x16float(x[id.x]).x;
    ${body}
    y[id.x] = p.factor * tile[63u - lane];
}
@compute @workgroup_size(1)
fn clear() { y[0] = 0.0; }`;

async function selfTest() {
    const cases = [
        ['a barrier', shader('workgroupBarrier();'), null],
        ['a subgroup sum', shader('workgroupBarrier(); tile[lane] = subgroupAdd(tile[lane]); workgroupBarrier();'), null],
        ['f16', 'enable f16;\n' + shader('workgroupBarrier(); tile[lane] += f32(f16(tile[lane]));'), null],
        ['larger limits, said', '// limits: larger\n' + shader('workgroupBarrier();', 512, 8192), null],
        ['larger limits, not said', shader('workgroupBarrier();', 512), /pipeline scale.*workgroup/is],
        ['too much workgroup memory', shader('workgroupBarrier();', 64, 8192), /pipeline scale.*workgroup/is],
        ['a barrier that not all reach', shader('if (lane < 32u) { workgroupBarrier(); }'), /uniform control flow/],
        ['a subgroup sum that not all reach', shader('if (x[id.x] > 3u) { tile[lane] = subgroupAdd(tile[lane]); }'), /uniform control flow/],
        ['a barrier after a return', shader('if (id.x >= arrayLength(&y)) { return; } workgroupBarrier();'), /uniform control flow/],
        ['a wrong type', shader('let n: u32 = 1.0;'), /error at 10:/],
        ['a warning', shader('workgroupBarrier(); if (true) { return; } else { return; } tile[0] = 1.0;'), /warning.*unreachable/],
        ['no entry point', '// @compute fn scale() {}', /no @compute/],
    ];
    let bad = 0;
    for (const [name, text, expected] of cases) {
        const found = (await faults(text)).join('\n');
        const right = expected ? expected.test(found) : found === '';
        if (!right) bad += 1;
        console.log(right ? `ok     ${name}` : `FAILED ${name}: expected ${expected ?? 'no fault'}, got: ${found || 'no fault'}`);
    }
    return bad === 0;
}

const [argument] = process.argv.slice(2);
if (!argument) {
    console.error('usage: node tests/tint/check.mjs DIR | --self-test');
    process.exit(2);
}
process.exitCode = (argument === '--self-test' ? await selfTest() : await checkFolder(argument)) ? 0 : 1;
