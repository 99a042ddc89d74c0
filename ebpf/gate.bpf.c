// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The VM's side of the front. `gate` takes every frame the VM sends, numbers it and puts it into the hold;
 * `inbound` lets frames in to the VM while the front is open. Both see every EtherType, and neither has a way
 * to let a frame go on by itself: what cannot be redirected is dropped.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "common.h"
#include "trace.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct hf_gate);
} gate_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct hf_inbound);
} inbound_state SEC(".maps");

/* TC ingress of the VM's tap. */
SEC("tc")
int gate(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 len = skb->len, seq, held;
	struct hf_gate *g = bpf_map_lookup_elem(&gate_state, &zero);

	if (!g)
		return TC_ACT_SHOT;

	/* CPUs that race here may overshoot by one frame each; the stamp has room for 16384 more. */
	if (g->issued_frames - g->released_frames >= g->limit_frames ||
	    g->issued_bytes - g->released_bytes + len > g->limit_bytes) {
		__sync_fetch_and_add(&g->overflow_frames, 1);
		__sync_fetch_and_add(&g->overflow_bytes, len);
		HF_TELL(skb, g, HF_OVERFLOW, 0, g->released_frames, g->issued_bytes - g->released_bytes);
		return TC_ACT_SHOT;
	}

	/* Counted before it is in the hold: whoever wakes up on the hold finds it counted. */
	held = __sync_fetch_and_add(&g->issued_bytes, len) - g->released_bytes;
	seq = __sync_fetch_and_add(&g->issued_frames, 1) + 1;
	if (bpf_skb_vlan_push(skb, bpf_htons(HF_STAMP_PROTO), seq & 0xffff)) {
		__sync_fetch_and_add(&g->failed_frames, 1);
		HF_TELL(skb, g, HF_FAILED, seq, g->released_frames, held);
		return TC_ACT_SHOT;
	}
	HF_TELL(skb, g, HF_HELD, seq, g->released_frames, held);
	return bpf_redirect(g->hold_ifindex, 0);
}

/* TC egress of the out tap. */
SEC("tc")
int inbound(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct hf_inbound *in = bpf_map_lookup_elem(&inbound_state, &zero);

	if (!in)
		return TC_ACT_SHOT;
	if (!in->open || !in->vm_ifindex) {
		__sync_fetch_and_add(&in->closed_frames, 1);
		HF_TELL(skb, in, HF_SHUT, 0, 0, 0);
		return TC_ACT_SHOT;
	}
	__sync_fetch_and_add(&in->passed_frames, 1);
	__sync_fetch_and_add(&in->passed_bytes, skb->len);
	HF_TELL(skb, in, HF_RECEIVED, 0, 0, 0);
	return bpf_redirect(in->vm_ifindex, 0);
}

char _license[] SEC("license") = "GPL";
