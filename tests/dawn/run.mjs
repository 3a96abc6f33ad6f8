// Repeats a golden subset of dispatches in Dawn, another implementation of WebGPU with another WGSL compiler, and judges
// what comes out by the limits that our own judge has: per element, per row, and every other byte as it was.
//
//   node tests/dawn/run.mjs DIR               every case of DIR/golden.json; exit status 1 when any is off
//   node tests/dawn/run.mjs DIR --self-test   the first case of every element type with one byte flipped: found each time
//
// DIR is made by `golden DIR` (crates/molora-check/examples/golden.rs). The Vulkan driver is the environment's.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const home = new URL('../../target/tint/node_modules/webgpu/index.js', import.meta.url);
const { create, globals } = await import(home).catch((error) => {
    console.error(`Dawn is not installed: run tests/drivers.sh (${error.message})`);
    process.exit(1);
});
const [folder, mode] = process.argv.slice(2);
if (!folder || (mode && mode !== '--self-test')) {
    console.error('usage: node tests/dawn/run.mjs DIR [--self-test]');
    process.exit(2);
}
const golden = JSON.parse(readFileSync(join(folder, 'golden.json'), 'utf8'));
const data = readFileSync(join(folder, 'golden.bin'));
const bytesOf = ([at, length]) => new Uint8Array(data.buffer, data.byteOffset + at, length).slice();
const floatsOf = (place) => new Float32Array(bytesOf(place).buffer);

// All three stay reachable for ever: node crashes when it collects one of them.
Object.assign(globalThis, globals, { gpu: create(['backend=vulkan']) });
globalThis.adapter = await gpu.requestAdapter();
if (!adapter) {
    console.error('Dawn finds no Vulkan adapter that it takes (VK_DRIVER_FILES names the driver)');
    process.exit(1);
}
const wanted = ['subgroups', 'shader-f16'].filter((feature) => adapter.features.has(feature));
globalThis.device = await adapter.requestDevice({ requiredFeatures: wanted });
console.log(`Dawn on ${adapter.info.description || adapter.info.device} (${adapter.info.vendor}, ${wanted.join(' ') || 'no features'})`);

// Pipelines by text, entry and the kinds of bindings.
const pipelines = new Map();
function pipelineOf({ text, entry, bindings }) {
    const kinds = bindings.map((b) => (b.writes ? 'storage' : 'read-only-storage'));
    const key = [text, entry, ...kinds].join(' ');
    if (!pipelines.has(key)) {
        // Dawn asks for this line and naga refuses it, so the shaders do not have it.
        const bare = golden.texts[text].replace(/\/\/.*/g, ' ');
        const subgroups = /\bsubgroup\w+\s*\(|\bquad\w+\s*\(|@builtin\(\s*(subgroup_|num_subgroups)/.test(bare);
        const code = (subgroups ? 'enable subgroups; ' : '') + golden.texts[text];
        const entries = [...kinds, 'uniform'].map((type, binding) => ({
            binding,
            visibility: GPUShaderStage.COMPUTE,
            buffer: { type },
        }));
        const layout = device.createBindGroupLayout({ entries });
        const pipeline = device.createComputePipeline({
            layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
            compute: { module: device.createShaderModule({ code }), entryPoint: entry },
        });
        pipelines.set(key, { layout, pipeline });
    }
    return pipelines.get(key);
}

function filled(bytes, usage) {
    const size = Math.max(16, Math.ceil(bytes.length / 16) * 16);
    const buffer = device.createBuffer({ size, usage, mappedAtCreation: true });
    new Uint8Array(buffer.getMappedRange()).set(bytes);
    buffer.unmap();
    return buffer;
}

// The bytes of every output of a case after its commands; `befores` are the buffers' bytes before.
async function execute({ commands, outputs }, befores) {
    device.pushErrorScope('validation');
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const buffers = befores.map((bytes) => filled(bytes, usage));
    const encoder = device.createCommandEncoder();
    for (const command of commands) {
        if (command.clear !== undefined) {
            const [begin, end] = command.range;
            encoder.clearBuffer(buffers[command.clear], begin, end - begin);
            continue;
        }
        const { layout, pipeline } = pipelineOf(command);
        const entries = command.bindings.map(({ buffer, range: [begin, end] }, binding) => ({
            binding,
            resource: { buffer: buffers[buffer], offset: begin, size: end - begin },
        }));
        const uniform = filled(bytesOf(command.params), GPUBufferUsage.UNIFORM);
        entries.push({ binding: entries.length, resource: { buffer: uniform } });
        const pass = encoder.beginComputePass();
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
        pass.dispatchWorkgroups(...command.groups);
        pass.end();
    }
    const staged = outputs.map(({ buffer }) => {
        const { size } = buffers[buffer];
        const stage = device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
        encoder.copyBufferToBuffer(buffers[buffer], 0, stage, 0, size);
        return stage;
    });
    device.queue.submit([encoder.finish()]);
    const error = await device.popErrorScope();
    if (error) throw new Error(error.message);
    const results = [];
    for (const stage of staged) {
        await stage.mapAsync(GPUMapMode.READ);
        results.push(new Uint8Array(stage.getMappedRange()).slice());
    }
    [...buffers, ...staged].forEach((buffer) => buffer.destroy());
    return results;
}

const widths = { f32: 4, f16: 2, bf16: 2 };
function f16(bits) {
    const [exponent, mantissa] = [(bits >> 10) & 31, bits & 1023];
    const size = exponent === 31 ? (mantissa ? NaN : Infinity) : exponent ? 2 ** (exponent - 15) * (1 + mantissa / 1024) : mantissa * 2 ** -24;
    return bits >> 15 ? -size : size;
}
function elementsOf(bytes, element) {
    if (element === 'f32') return new Float32Array(bytes.buffer);
    const words = new Uint16Array(bytes.buffer);
    if (element === 'f16') return Float64Array.from(words, f16);
    return new Float32Array(Uint32Array.from(words, (word) => word << 16).buffer);
}

// What is wrong with an output, or nothing.
function judge({ name, expected }, before, got) {
    if (expected.exactly) {
        const want = bytesOf(expected.exactly);
        const at = want.findIndex((byte, i) => byte !== got[i]);
        return at < 0 ? null : `${name}: byte ${at}: expected ${want[at]}, got ${got[at]}`;
    }
    const { element, first, rows, width, stride } = expected;
    const [want, limit, rowLimit] = [expected.want, expected.limit, expected.row_limit].map(floatsOf);
    const values = elementsOf(got, element);
    const owned = new Uint8Array(got.length);
    const bytes = widths[element];
    for (let row = 0; row < rows; row++) {
        let [errorSquares, wantSquares] = [0, 0];
        for (let column = 0; column < width; column++) {
            const [i, at] = [row * width + column, first + row * stride + column];
            if (Number.isNaN(want[i])) continue; // Not written.
            owned.fill(1, at * bytes, (at + 1) * bytes);
            const error = Math.abs(values[at] - want[i]);
            errorSquares += error * error;
            wantSquares += want[i] * want[i];
            // NaN is worse than every limit.
            if (!(error <= limit[i])) return `${name}[${row}, ${column}]: expected ${want[i]}, got ${values[at]}, limit ${limit[i]}`;
        }
        const relative = errorSquares === 0 ? 0 : Math.sqrt(errorSquares / wantSquares);
        if (!(relative <= rowLimit[row])) return `${name}: row ${row}: relative L2 error ${relative}, limit ${rowLimit[row]}`;
    }
    const touched = before.findIndex((byte, i) => !owned[i] && byte !== got[i]);
    return touched < 0 ? null : `${name}: byte ${touched}, which is no element's, was ${before[touched]} and is ${got[touched]}`;
}

async function check(kase, damage = { before: () => {}, after: () => {} }) {
    const befores = kase.buffers.map(bytesOf);
    const intact = befores.map((bytes) => bytes.slice());
    damage.before(befores);
    const results = await execute(kase, befores);
    damage.after(results);
    return kase.outputs.map((output, i) => judge(output, intact[output.buffer], results[i])).find((why) => why) ?? null;
}

async function everyCase() {
    let bad = 0;
    const begin = performance.now();
    for (const kase of golden.cases) {
        const why = await check(kase).catch((error) => error.message);
        if (why) bad += 1;
        if (why) console.log(`FAILED ${kase.name}: ${why}`);
    }
    const seconds = ((performance.now() - begin) / 1000).toFixed(1);
    console.log(`${golden.cases.length - bad} passed, ${bad} failed (${pipelines.size} pipelines, ${seconds} s)`);
    return golden.cases.length > 0 && bad === 0;
}

// One byte of a case flipped: of an element, of its guards, of what the kernels read.
async function selfTest() {
    let bad = 0;
    const report = (name, right, got) => {
        if (!right) bad += 1;
        console.log(`${right ? 'ok    ' : 'FAILED'} ${name}: ${got ?? 'nothing found'}`);
    };
    const flip = (bytes, at) => { bytes[at] ^= 0x7f; };
    for (const element of Object.keys(widths)) {
        const kase = golden.cases.find(({ name }) => name.startsWith(`base/${element}/`));
        const { expected } = kase.outputs[0];
        const last = expected.first + (expected.rows - 1) * expected.stride + expected.width - 1;
        const bytes = widths[element];
        const weight = kase.commands[0].bindings.find((b) => b.name === 'w').buffer;
        const after = (at) => ({ before: () => {}, after: ([y]) => flip(y, at) });
        const input = { before: (buffers) => flip(buffers[weight], 20 * bytes - 1), after: () => {} };
        const [high, guard, padding] = [(last + 1) * bytes - 1, 3, (expected.first + expected.width + 1) * bytes];
        for (const [what, damage, wanted] of [
            ['nothing', undefined, null],
            ['the last element', after(high), /\[\d+, \d+\]: expected/],
            ['a guard', after(guard), /no element's/],
            ['padding', after(padding), /no element's/],
            ['a weight', input, /expected|error/],
        ]) {
            const found = await check(kase, damage);
            report(`${element}, one byte of ${what}`, wanted ? wanted.test(found) : found === null, found);
        }
    }
    const plan = golden.cases.find(({ name }) => name.startsWith('plan/'));
    const found = await check(plan, { before: () => {}, after: ([words]) => flip(words, 4) });
    report('a plan, one byte', /byte 4: expected/.test(found), found);
    return bad === 0;
}

// Node would wait for Dawn's threads.
process.exit((mode ? await selfTest() : await everyCase()) ? 0 : 1);
