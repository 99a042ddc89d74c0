/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a program tells of a frame it has judged: one record into the ring of each slot that asks for it. Nothing
 * here changes the frame, and what goes wrong here costs a record, which is counted as lost.
 */
#ifndef HOLDFAST_TRACE_H
#define HOLDFAST_TRACE_H

#include <linux/bpf.h>
#include <linux/bpf_common.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "common.h"

/* Of the classic machine, as linux/filter.h would have them if it went together with linux/bpf.h. */
#define HF_RET_A 0x10
#define HF_TXA	 0x80

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HF_TRACE_SLOTS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct hf_slot);
} trace_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, HF_TRACE_SLOTS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_RINGBUF);
		__uint(max_entries, 4096);
	});
} trace_rings SEC(".maps");

/* A classic packet filter at work. */
struct hf_machine {
	__u32 next; /* instruction */
	__u32 a;
	__u32 x;
	__u32 memory[16];
};

/* Where a record is put together: too much for the stack. */
struct hf_scratch {
	struct hf_record record;
	__u8 snap[HF_TRACE_SNAP];
	struct hf_machine machine;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct hf_scratch);
} trace_scratch SEC(".maps");

/* The kernel keeps one tag beside the frame. Our stamp is no part of the frame; any other tag is. */
static __always_inline int hf_tag_beside(struct __sk_buff *skb)
{
	return skb->vlan_present && skb->vlan_proto != bpf_htons(HF_STAMP_PROTO);
}

/* 1, 2 or 4 bytes at `at` of the frame as it is on the wire. A filter that reads beyond it takes no frame. */
static __always_inline int hf_load(struct __sk_buff *skb, __u32 at, __u32 size, __u32 *value)
{
	__u32 word = 0;

	if (at > 0x1ffff)
		return -1;
	if (at + size > 12 && hf_tag_beside(skb)) {
		if (at < 12 || (at < 16 && at + size > 16))
			return -1;
		if (at < 16) {
			word = (__u32)bpf_ntohs(skb->vlan_proto) << 16 | (skb->vlan_tci & 0xffff);
			word >>= 8 * (16 - at - size) & 31;
			*value = size == 1 ? word & 0xff : size == 2 ? word & 0xffff : word;
			return 0;
		}
		at -= 4;
	}
	if (size == 4) {
		if (bpf_skb_load_bytes(skb, at, &word, 4))
			return -1;
		*value = bpf_ntohl(word);
	} else if (size == 2) {
		__u16 half = 0;

		if (bpf_skb_load_bytes(skb, at, &half, 2))
			return -1;
		*value = bpf_ntohs(half);
	} else {
		__u8 byte = 0;

		if (bpf_skb_load_bytes(skb, at, &byte, 1))
			return -1;
		*value = byte;
	}
	return 0;
}

static __always_inline __u32 hf_alu(__u32 op, __u32 a, __u32 b)
{
	switch (op) {
	case BPF_ADD: return a + b;
	case BPF_SUB: return a - b;
	case BPF_MUL: return a * b;
	case BPF_DIV: return b ? a / b : 0;
	case BPF_MOD: return b ? a % b : a;
	case BPF_AND: return a & b;
	case BPF_OR:  return a | b;
	case BPF_XOR: return a ^ b;
	case BPF_LSH: return b < 32 ? a << b : 0;
	case BPF_RSH: return b < 32 ? a >> b : 0;
	case BPF_NEG: return -a;
	}
	return a;
}

static __always_inline int hf_holds(__u32 op, __u32 a, __u32 b)
{
	return op == BPF_JEQ ? a == b : op == BPF_JGT ? a > b : op == BPF_JGE ? a >= b : (a & b) != 0;
}

enum { HF_GO_ON, HF_TAKE, HF_REFUSE };

/*
 * One instruction of the slot's filter, on the classic machine: an accumulator, an index, 16 words of memory. What it
 * does not know, and what would divide by zero or read beyond the frame, takes no frame. A function of its own, so
 * that it is verified once and not once for each path through the program.
 */
__noinline int hf_step(struct __sk_buff *skb, __u32 index)
{
	__u32 zero = 0, code, k, size, operand, value = 0;
	struct hf_slot *slot = bpf_map_lookup_elem(&trace_slots, &index);
	struct hf_scratch *scratch = bpf_map_lookup_elem(&trace_scratch, &zero);
	struct hf_instruction *one;
	struct hf_machine *m;

	if (!slot || !scratch)
		return HF_REFUSE;
	m = &scratch->machine;
	if (m->next >= HF_TRACE_FILTER)
		return HF_REFUSE;
	one = &slot->filter[m->next & (HF_TRACE_FILTER - 1)];
	code = one->code;
	k = one->k;
	operand = BPF_SRC(code) == BPF_X ? m->x : k;
	m->next++;
	switch (BPF_CLASS(code)) {
	case BPF_LD:
	case BPF_LDX:
		switch (BPF_MODE(code)) {
		case BPF_IMM:
			value = k;
			break;
		case BPF_LEN:
			value = skb->len + (hf_tag_beside(skb) ? 4 : 0);
			break;
		case BPF_MEM:
			value = m->memory[k & 15];
			break;
		case BPF_IND:
			k += m->x;
			/* fall through */
		case BPF_ABS:
		case BPF_MSH:
			size = BPF_SIZE(code) == BPF_W ? 4 : BPF_SIZE(code) == BPF_H ? 2 : 1;
			if (hf_load(skb, k, size, &value))
				return HF_REFUSE;
			if (BPF_MODE(code) == BPF_MSH)
				value = (value & 0xf) * 4;
			break;
		default:
			return HF_REFUSE;
		}
		if (BPF_CLASS(code) == BPF_LD)
			m->a = value;
		else
			m->x = value;
		break;
	case BPF_ST:
		m->memory[k & 15] = m->a;
		break;
	case BPF_STX:
		m->memory[k & 15] = m->x;
		break;
	case BPF_ALU:
		if (!operand && (BPF_OP(code) == BPF_DIV || BPF_OP(code) == BPF_MOD))
			return HF_REFUSE;
		m->a = hf_alu(BPF_OP(code), m->a, operand);
		break;
	case BPF_JMP:
		if (BPF_OP(code) == BPF_JA)
			m->next += k & 0xffff;
		else
			m->next += hf_holds(BPF_OP(code), m->a, operand) ? one->jt : one->jf;
		break;
	case BPF_RET:
		return (code & HF_RET_A ? m->a : k) ? HF_TAKE : HF_REFUSE;
	default: /* BPF_MISC */
		if (code & HF_TXA)
			m->a = m->x;
		else
			m->x = m->a;
	}
	return HF_GO_ON;
}

/* Does the slot's filter take this frame? Jumps go forward only: n instructions end within n steps. */
__noinline int hf_filter_takes(struct __sk_buff *skb, __u32 index)
{
	__u32 zero = 0;
	struct hf_scratch *scratch = bpf_map_lookup_elem(&trace_scratch, &zero);

	if (!scratch)
		return 0;
	scratch->machine.next = scratch->machine.a = scratch->machine.x = 0;
	for (int step = 0; step < HF_TRACE_FILTER; step++) {
		int found = hf_step(skb, index);

		if (found != HF_GO_ON)
			return found == HF_TAKE;
	}
	return 0;
}

/* Into the ring of one slot, if it asks for this; the scratch memory has what is the same for all slots. */
__noinline int hf_tell_slot(struct __sk_buff *skb, __u32 index)
{
	__u32 zero = 0, taken;
	struct hf_slot *slot = bpf_map_lookup_elem(&trace_slots, &index);
	struct hf_scratch *scratch = bpf_map_lookup_elem(&trace_scratch, &zero);
	void *ring = bpf_map_lookup_elem(&trace_rings, &index);
	struct hf_record *record;

	if (!slot || !scratch || !ring)
		return 0;
	record = &scratch->record;
	if (!(slot->points >> (record->point & 31) & 1))
		return 0;
	if (slot->instructions && !hf_filter_takes(skb, index))
		return 0;
	taken = slot->snap < record->len ? slot->snap : record->len;
	if (taken > HF_TRACE_SNAP)
		taken = HF_TRACE_SNAP;
	if (!taken || bpf_skb_load_bytes(skb, 0, scratch->snap, taken))
		taken = 0;
	record->caplen = taken;
	record->source = slot->source;
	record->lost = slot->lost_frames;
	/* Nobody is woken: readers look often enough, and a wake-up costs more than all of this. */
	if (bpf_ringbuf_output(ring, record, sizeof(*record) + taken, BPF_RB_NO_WAKEUP))
		__sync_fetch_and_add(&slot->lost_frames, 1);
	return 0;
}

/* `what`: the program's trace word, with the point in its upper half. `weight`: held bytes, or the term. */
__noinline int hf_tell(struct __sk_buff *skb, __u64 what, __u64 number, __u64 boundary, __u64 weight)
{
	__u32 zero = 0, slots = what, point = what >> 32;
	struct hf_scratch *scratch = bpf_map_lookup_elem(&trace_scratch, &zero);
	struct hf_record *record;

	if (!scratch)
		return 0;
	record = &scratch->record;
	record->version = HF_TRACE_VERSION;
	record->point = point;
	record->segments = skb->gso_segs;
	record->len = skb->len;
	record->tag_proto = hf_tag_beside(skb) ? bpf_ntohs(skb->vlan_proto) : 0;
	record->tag_tci = record->tag_proto ? skb->vlan_tci : 0;
	record->time_ns = bpf_ktime_get_ns();
	record->number = number;
	record->boundary = boundary;
	record->held = point < HF_RELEASED ? weight : 0;
	record->term = point < HF_RELEASED ? 0 : weight;
	if (slots & 1)
		hf_tell_slot(skb, 0);
	if (slots & 2)
		hf_tell_slot(skb, 1);
	if (slots & 4)
		hf_tell_slot(skb, 2);
	if (slots & 8)
		hf_tell_slot(skb, 3);
	return 0;
}

#ifdef HF_UNTRACED /* to measure what all of this costs */
#define HF_TELL(skb, state, point, number, boundary, weight) do {} while (0)
#else
#define HF_TELL(skb, state, point, number, boundary, weight)                                                     \
	do {                                                                                                      \
		__u64 hf_slots = (state)->trace;                                                                  \
		if (__builtin_expect(hf_slots != 0, 0))                                                           \
			hf_tell(skb, hf_slots | (__u64)(point) << 32, number, boundary, weight);                  \
	} while (0)
#endif

#endif
